"""The theory's numbers for a finished run and its measured gap: every theorem with value, assumptions and source.

This costs little: the norms of W0 are cached on disk by content for all methods and seeds, the norms of dW come from
its factors, and the gap comes from the predictions that the run kept.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tunewise.catalog import Method, get_method
from tunewise.errors import MeasureError, SpecError, StoreError
from tunewise.measures._linalg.spectral_norm import cached_spectral_norm, spectral_norm
from tunewise.measures.base import MeasureResult, MeasureSettings, Values
from tunewise.measures.bounds.clipping import ClippedGap, clip_range, clipped_gap, losses_of
from tunewise.measures.bounds.curvature import largest_curvature
from tunewise.measures.bounds.theorems import BoundLine, Facts, FrozenFactor, LayerNorms, theorems
from tunewise.measures.finished import Check, FinishedRun, no_check
from tunewise.measures.updates.folder import updates_of
from tunewise.measures.updates.layer import LayerUpdate, Updates
from tunewise.methods.attachment import Attachment
from tunewise.methods.files import SIDECAR, read_attachment
from tunewise.tasks.contract import Split, Task

NORMS = "spectral-norms"
"""The folder of W0's norms within a cache."""


class BoundFacts(Values):
    """What went into the theorems; see `Facts`."""

    layers: tuple[LayerNorms, ...]
    input_bound: float
    input_bound_source: str
    samples: int | None
    classes: int | None
    loss_range: float | None
    head: int
    bits: int
    delta: float
    curvature: float | None


class BoundsResult(MeasureResult):
    gap: ClippedGap | None
    """Measured; None for an adapter without a run."""
    lines: tuple[BoundLine, ...]
    facts: BoundFacts
    missing: tuple[str, ...] = ()
    """What to give for further numbers."""

    def line(self, key: str) -> BoundLine | None:
        return next((line for line in self.lines if line.key == key), None)

    def value(self, key: str) -> float | None:
        line = self.line(key)
        return None if line is None else line.value


def compute(run: FinishedRun, settings: MeasureSettings, check: Check) -> BoundsResult:
    return bounds_of_run(run, check)


def bounds_of_run(
    run: FinishedRun, check: Check, *, input_bound: float | None = None, with_curvature: bool = False
) -> BoundsResult:
    """`input_bound` replaces the measured one; `with_curvature` measures the curvature that the step size needs."""
    facts = _with_input_bound(facts_of_run(run, check), input_bound)
    if with_curvature and facts.method is not None and facts.method.selects_columns:
        facts = replace(facts, curvature=largest_curvature(run, check))
    train, test = losses_of(run, check)
    assert facts.loss_range is not None
    return _result(facts, gap=clipped_gap(train, test, facts.loss_range))


def bounds_of_adapter(
    folder: Path,
    base: nn.Module,
    *,
    cache: Path | None,
    samples: int | None = None,
    classes: int | None = None,
    input_bound: float | None = None,
) -> BoundsResult:
    """For an adapter folder without a run."""
    known = read_attachment(folder) if (folder / SIDECAR).exists() else None
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
    facts = _with_input_bound(facts, input_bound)
    if samples is None or classes is None:
        missing = ("give --samples N and --classes K for the bounds that depend on the training data",)
        return _result(replace(facts, samples=None), missing=missing)
    return _result(facts)


def _with_input_bound(facts: Facts, given: float | None) -> Facts:
    return facts if given is None else replace(facts, input_bound=given, input_bound_source="as given")


def _result(facts: Facts, gap: ClippedGap | None = None, missing: tuple[str, ...] = ()) -> BoundsResult:
    used = BoundFacts.model_validate({name: getattr(facts, name) for name in BoundFacts.model_fields})
    return BoundsResult(gap=gap, lines=tuple(theorems(facts)), facts=used, missing=missing)


def _slices(done: Attachment) -> list[tuple[int, int]] | None:
    return [(part.rows, t.in_features) for t in done.targets for part in t.parts] or None


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


def facts_of_run(run: FinishedRun, check: Check) -> Facts:
    """Raises `MeasureError` where the run's update can't be read."""
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
        slices=_slices(read_attachment(run.adapter)),
        parameters=run.record.model.adapter,
        head=run.record.model.head,
        samples=samples,
        classes=classes,
        loss_range=clip_range(classes),
        input_bound=largest_input(run.base, run.task, run.task.train, [u.name for u in facts.layers], check),
        input_bound_source="the largest Frobenius norm of a training example where it enters the first changed layer",
    )


def facts_of_update(
    updates: Updates,
    *,
    method: Method | None,
    cache: Path | None,
    check: Check = no_check,
) -> Facts:
    """For an adapter without a run: norms, but neither sample nor classes; input bound 1."""
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
        input_bound_source="1, as there is no data; Phi is proportional to it",
        frozen=_frozen(updates, method),
    )


def largest_input(
    model: nn.Module, task: Task, split: Split, layers: list[str], check: Check, batch_size: int = 64
) -> float:
    """The largest Frobenius norm of an example, without padding, where it enters the first of `layers`."""
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


def _norms(update: LayerUpdate, cache: Path | None) -> LayerNorms:
    if update.has_factors:
        spectral, frobenius = update.spectral_norm(), update.frobenius_norm()
    else:
        dense = update.delta()
        spectral, frobenius = spectral_norm(dense).upper, float(dense.norm())
    base = cached_spectral_norm(update.base, cache).upper
    return LayerNorms(name=update.name, shape=update.shape, base=base, update=spectral, frobenius=frobenius)


def _frozen(updates: Updates, method: Method | None) -> FrozenFactor | None:
    """For B A with a random A that was never trained (asym, rac); a chain's A stacks those of its links."""
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
        gaussian=method.lora_a_init == "normal",
    )


def _deviation(method: Method, features: int) -> float:
    """sA of the method's law."""
    laws = {"kaiming": 1 / math.sqrt(3 * features), "normal": 0.02, "orthonormal": 1 / math.sqrt(features)}
    if method.lora_a_init not in laws:
        raise SpecError(f"the law {method.lora_a_init!r} of A has no known deviation")
    return laws[method.lora_a_init]
