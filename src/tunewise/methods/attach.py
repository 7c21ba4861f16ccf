"""A method onto a model: `attach` gives a `peft.PeftModel` (for `fft` and `head` the model itself)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from peft import PeftModel
from torch import Tensor, nn

from tunewise.catalog import ALaw, Chain, Layout, Method, get_method
from tunewise.errors import ModelError, SpecError
from tunewise.methods.attachment import Attachment, remember
from tunewise.methods.furnish import furnish
from tunewise.methods.inject import inject_lora
from tunewise.methods.one_step import start_at_gradient
from tunewise.methods.pass_through import pass_through
from tunewise.models.blocks import Layers
from tunewise.models.head import head_modules
from tunewise.models.layers import Target, find_targets


def attach(
    model: nn.Module,
    method: str | Method,
    *,
    rank: int = 8,
    alpha: float | None = None,
    targets: str | Sequence[str] | Sequence[Target] = "qv",
    layers: Layers | None = None,
    seed: int = 0,
    chain: Chain | None = None,
    dropout: float = 0.0,
    a_law: ALaw | None = None,
    layout: Layout | None = None,
    fold: str = "auto",
    adapter_name: str = "default",
    batches: Iterable[Mapping[str, Tensor]] | None = None,
    peft_options: Mapping[str, Any] | None = None,
) -> Any:
    """Put a method onto a model, ready to train. The outputs stay the base model's (`lora-one` aside).

    Args:
        model: a transformers model (or any module with linear layers), or a `PeftModel` that gets one more adapter.
        method: a name of the catalog, or a `Method` of one's own.
        rank: r; for column methods the number of columns.
        alpha: the scale is alpha / rank; 2 x rank unless given. `paca`'s scale is 1 whatever alpha is.
        targets: `"qv"`, `"attention"`, `"all-linear"`, or names and patterns (see `models.layers.find_targets`).
        layers: of these, the ones in blocks with these numbers alone (from 0, PEFT's `layers_to_transform`), or
            in the `"last 2"`.
        seed: of every random choice made here; the global generator is neither read nor moved.
        chain: another schedule than the catalog's, for a method with a chain.
        dropout: on the adapter's input; column methods then take the additive path.
        a_law: law of a random A: `"kaiming"` (stock PEFT's), `"normal"` (N(0, 0.02^2)), `"orthonormal"`.
        layout: of sampled columns: runs of a `"permutation"`, or a contiguous random `"block"`.
        fold: `"auto"`, `"never"` (additive path), or `"always"` (also into bf16 and fp16 weights, where small
            updates are rounded away).
        adapter_name: PEFT's name of the adapter.
        peft_options: for `peft:NAME`: fields of PEFT's own config (`{"total_step": 1000}` for adalora).
        batches: for `lora-one`: batches with labels, over which the one full gradient is taken.

    Returns:
        A `peft.PeftModel`; for `fft` and `head` the model itself. The task head is trained in every method.

    Raises:
        SpecError: unknown method, rank below 1, an option that the method has no use for.
        ModelError: an unknown target, a rank above a layer's size, a layer that can't be adapted.
    """
    row = _resolve(get_method(method), chain, a_law, layout)
    if rank < 1:
        raise SpecError(f"rank = {rank}: at least 1 is needed")
    if fold not in ("auto", "never", "always"):
        raise SpecError(f"fold = {fold!r}; choose 'auto', 'never' or 'always'")
    if (batches is not None) != (row.start == "gradient"):
        raise SpecError(
            "lora-one starts from a gradient: pass batches=..., an iterable of batches with labels"
            if batches is None
            else f"batches= means nothing to method {row.name!r}"
        )
    alpha = 2.0 * rank if alpha is None else float(alpha)
    if row.scaling == "one":
        alpha = float(rank)
    if peft_options and not row.passed_through:
        raise SpecError(f"peft_options= is for methods of PEFT ('peft:dora'), not for {row.name!r}")
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    head = tuple(head_modules(base))
    if not row.adapts:
        return _train_weights(model, Attachment(row, rank, alpha, seed, (), head, adapter_name))

    found = tuple(find_targets(base, targets, layers))
    if row.passed_through:
        return pass_through(model, Attachment(row, rank, alpha, seed, found, head, adapter_name), peft_options or {})
    for target in found:
        _check_rank(row, rank, target)
    done = Attachment(row, rank, alpha, seed, found, head, adapter_name, dropout, fold)
    peft_model = inject_lora(model, done)
    furnish(peft_model, done)
    remember(peft_model, done)
    if batches is not None:
        start_at_gradient(peft_model, done, batches)
    return peft_model


def _resolve(method: Method, chain: Chain | None, a_law: ALaw | None, layout: Layout | None) -> Method:
    if chain is not None and method.chain is None:
        raise SpecError(f"method {method.name!r} has no chain; use one that has (c3la, r-c3la, c-paca, cola, rac)")
    changes: dict[str, Any] = {"chain": chain, "a_law": a_law, "layout": layout}
    return replace(method, **{key: value for key, value in changes.items() if value is not None})


def _check_rank(method: Method, rank: int, target: Target) -> None:
    rows = min(stop - start for start, stop in target.parts)
    if method.selects_columns:
        limit, what = target.in_features, "input columns"
    elif method.trained == "A":
        limit, what = target.out_features, "output rows"
    else:
        limit, what = min(rows, target.in_features), "as its smaller side"
    if rank > limit:
        raise ModelError(
            f"rank {rank} is above layer {target.name}, which has {limit} {what}; use rank <= {limit} or other targets"
        )
    if method.trained == "A" and target.fused:
        raise ModelError(f"layer {target.name}: rows of a fused projection are not offered; use 'cla'")


def _train_weights(model: nn.Module, done: Attachment) -> nn.Module:
    """fft: everything; head: the task head alone."""
    if isinstance(model, PeftModel):
        raise SpecError(f"method {done.method.name!r} trains the model itself, and this one already carries an adapter")
    if done.method.trained == "head" and not done.head:
        raise ModelError(f"method 'head' needs a task head, and {type(model).__name__} has none")
    for name, parameter in model.named_parameters():
        in_head = name.split(".")[0] in done.head
        parameter.requires_grad_(parameter.is_floating_point() and (done.method.trained == "all" or in_head))
    remember(model, done)
    return model
