"""The theory's numbers for a finished run, beside its own gap: every theorem with value, assumptions, mark and source.

Costs little next to training: the norms of W0 are kept on disk by content and serve every method and seed, the norms
of dW come from its factors, and the gap is taken from the predictions that the run kept.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tunewise.catalog import Method, get_method
from tunewise.errors import MeasureError, SpecError, StoreError
from tunewise.measures._linalg.spectral_norm import cached_spectral_norm, spectral_norm
from tunewise.measures.bounds.clipping import clip_range, clipped_gap, losses_of
from tunewise.measures.bounds.curvature import largest_curvature
from tunewise.measures.bounds.theorems import Facts, FrozenFactor, LayerNorms, theorems
from tunewise.measures.finished import FinishedRun
from tunewise.measures.updates.folder import updates_of
from tunewise.measures.updates.layer import LayerUpdate, Updates
from tunewise.methods.adapter_files import SIDECAR, noted
from tunewise.methods.attachment import Attachment
from tunewise.tasks.contract import Split, Task

NORMS = "spectral-norms"
"""The folder of W0's norms within a cache."""


def bounds(run: FinishedRun, check: Callable[[], None]) -> dict[str, Any]:
    """`lines`: every theorem's number; `gap`: the measured gap of the clipped loss; `facts`: what went in."""
    return bounds_of_run(run, check)


def bounds_of_run(
    run: FinishedRun,
    check: Callable[[], None],
    *,
    input_bound: float | None = None,
    with_curvature: bool = False,
) -> dict[str, Any]:
    """The same with another input bound than the measured one, or with the curvature that the step size needs."""
    facts = facts_of_run(run, check)
    if input_bound is not None:
        facts = replace(facts, input_bound=input_bound, input_bound_is="as given")
    if with_curvature and facts.method is not None and facts.method.selects_columns:
        facts = replace(facts, curvature=largest_curvature(run, check))
    train, test = losses_of(run, check)
    assert facts.loss_range is not None
    return {
        "gap": clipped_gap(train, test, facts.loss_range).content(),
        "lines": [line.content() for line in theorems(facts)],
        "facts": facts_as_words(facts),
    }


def bounds_of_adapter(
    folder: Path,
    base: nn.Module,
    *,
    cache: Path | None,
    samples: int | None = None,
    classes: int | None = None,
    input_bound: float | None = None,
) -> dict[str, Any]:
    """The same for an adapter folder of which no run is known: no gap, and `missing` says what would give more."""
    known = noted(folder) if (folder / SIDECAR).exists() else None
    updates = updates_of(folder, base)
    facts = facts_of_update(
        updates, method=known.method if known else None, cache=None if cache is None else cache / NORMS
    )
    facts = replace(facts, parameters=_stored(folder, list(updates)), samples=samples, classes=classes)
    if known is not None:
        links = known.method.chain.links if known.method.chain else None
        facts = replace(facts, rank=known.rank, alpha=known.alpha, links=links, slices=_slices(known))
    if classes is not None:
        facts = replace(facts, loss_range=clip_range(classes))
    if input_bound is not None:
        facts = replace(facts, input_bound=input_bound, input_bound_is="as given")
    missing = []
    if samples is None or classes is None:
        missing.append("give --samples N and --classes K for the bounds that depend on the training data")
        facts = replace(facts, samples=None)
    return {
        "gap": None,
        "lines": [line.content() for line in theorems(facts)],
        "facts": facts_as_words(facts),
        "missing": missing,
    }


def _slices(done: Attachment) -> list[tuple[int, int]] | None:
    return [(stop - start, t.in_features) for t in done.targets for start, stop in t.parts] or None


def _stored(folder: Path, layers: list[str]) -> int:
    """The entries of a folder's tensors that belong to changed layers."""
    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(str(file), framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118, it is no dictionary
                plain = key.removeprefix("base_model.model.")
                if any(plain.startswith(f"{layer}.") for layer in layers):
                    count += math.prod(tensors.get_slice(key).get_shape())
    return count


def facts_of_run(run: FinishedRun, check: Callable[[], None]) -> Facts:
    """What the theorems need to know of a run. Raises `MeasureError` where its update can't be read."""
    if run.record.model is None or run.record.data is None:
        raise MeasureError("the run's record has no facts of its model and data")
    method = get_method(run.spec.method.name)
    classes, samples = len(run.record.data.labels), run.record.data.train
    if classes < 2:
        raise MeasureError("the task has no classes, so the loss has no range to be clipped to")
    try:
        updates = updates_of(run.adapter, run.base) if method.trained != "head" else Updates((), "head")
    except StoreError as error:
        raise MeasureError(str(error)) from None
    facts = facts_of_update(updates, method=method, cache=run.cache / NORMS, check=check)
    spec = run.spec.method
    return replace(
        facts,
        rank=spec.rank,
        alpha=spec.alpha or 2.0 * spec.rank,
        links=run.spec.links,
        slices=_slices(noted(run.adapter)),
        parameters=run.record.model.adapter,
        head=run.record.model.head,
        samples=samples,
        classes=classes,
        loss_range=clip_range(classes),
        input_bound=largest_input(run.base, run.task, run.task.train, [u.name for u in facts.layers], check),
        input_bound_is="the largest Frobenius norm of a training example where it enters the first changed layer",
    )


def facts_of_update(
    updates: Updates,
    *,
    method: Method | None,
    cache: Path | None,
    check: Callable[[], None] = lambda: None,
) -> Facts:
    """The same for an adapter of which no run is known: norms, but neither sample nor classes; C = 1."""
    layers = []
    for update in updates.values():
        check()
        layers.append(_norms(update, cache))
    factors = sum(
        u.left.numel() + u.right.numel() for u in updates.values() if u.left is not None and u.right is not None
    )
    dense = sum(math.prod(u.shape) for u in updates.values() if not u.has_factors)
    ranks = {u.left.shape[1] for u in updates.values() if u.left is not None}
    return Facts(
        layers=layers,
        method=method,
        rank=max(ranks, default=None),
        alpha=None,
        links=None,
        parameters=factors + dense,
        head=0,
        input_bound=1.0,
        input_bound_is="1, for want of data: Phi is in proportion to it",
        frozen=_frozen(updates, method),
    )


def largest_input(
    model: nn.Module, task: Task, split: Split, layers: list[str], check: Callable[[], None], batch_size: int = 64
) -> float:
    """The largest Frobenius norm over examples of what enters the first of `layers`, padding left out. The forward
    ends there. 1 where there are no layers."""
    if not layers:
        return 1.0
    largest = 0.0
    mask: Tensor | None = None

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal largest
        x = args[0].detach().double()
        if mask is not None and x.ndim == 3:
            x = x * mask[:, :, None]
        largest = max(largest, float(x.flatten(1).norm(dim=1).max()))
        raise _SeenEnough

    handle = model.get_submodule(layers[0]).register_forward_pre_hook(look)
    order = sorted(split, key=task.length)  # little padding
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            for start in range(0, len(order), batch_size):
                check()
                batch = {k: v.to(device) for k, v in task.collate(order[start : start + batch_size]).items()}
                mask = batch.get("attention_mask")
                with contextlib.suppress(_SeenEnough):
                    model(**{k: v for k, v in batch.items() if k != "labels"})
    finally:
        handle.remove()
    return largest


class _SeenEnough(Exception):
    """Ends a forward whose rest is not needed."""


def facts_as_words(facts: Facts) -> dict[str, Any]:
    """What went in, for the record."""
    return {
        "layers": [
            {
                "name": u.name,
                "shape": list(u.shape),
                "base": u.base,
                "update": u.update,
                "frobenius": u.update_frobenius,
            }
            for u in facts.layers
        ],
        "input_bound": facts.input_bound,
        "input_bound_is": facts.input_bound_is,
        "samples": facts.samples,
        "classes": facts.classes,
        "loss_range": facts.loss_range,
        "head": facts.head,
        "bits": facts.bits,
        "delta": facts.delta,
        "curvature": facts.curvature,
    }


def _norms(update: LayerUpdate, cache: Path | None) -> LayerNorms:
    base = cached_spectral_norm(update.base, cache).upper
    if update.has_factors:
        return LayerNorms(update.name, update.shape, base, update.spectral_norm(), update.frobenius_norm())
    dense = update.delta()
    return LayerNorms(update.name, update.shape, base, spectral_norm(dense).upper, float(dense.norm()))


def _frozen(updates: Updates, method: Method | None) -> FrozenFactor | None:
    """For B A with a random A that was never trained (asym, rac): a chain's A is its links' one above the other."""
    if method is None or method.trained != "B" or method.where != "random":
        return None
    factors = [(u.left, u.right) for u in updates.values() if u.left is not None and u.right is not None]
    if len(factors) < len(updates) or len({left.shape[1] for left, _ in factors}) != 1:
        return None
    # In the folder dW = scale B A; here the scale is in `left`, so it counts as 1 and the radius is that of scale B.
    return FrozenFactor(
        rank=factors[0][0].shape[1],
        scale=1.0,
        std=[_deviation(method, right.shape[1]) for _, right in factors],
        radius=max(float(left.norm()) for left, _ in factors),
        gaussian=method.a_law == "normal",
    )


def _deviation(method: Method, features: int) -> float:
    """sA of the method's law."""
    laws = {"kaiming": 1 / math.sqrt(3 * features), "normal": 0.02, "orthonormal": 1 / math.sqrt(features)}
    if method.a_law not in laws:
        raise SpecError(f"the law {method.a_law!r} of A has no known deviation")
    return laws[method.a_law]
