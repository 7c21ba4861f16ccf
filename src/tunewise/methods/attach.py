"""Put a method onto a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from peft import PeftModel
from peft.utils.transformers_weight_conversion import _MODEL_TO_CONVERSION_PATTERN, _MOE_TARGET_MODULE_MAPPING
from torch import Tensor, nn

from tunewise.catalog import Chain, Layout, LoraAInit, Method, get_method
from tunewise.errors import ModelError, SpecError
from tunewise.methods.attachment import Attachment, remember
from tunewise.methods.configure import check_ranks, configure_adapter_layers
from tunewise.methods.gradient_start import start_at_gradient
from tunewise.methods.pass_through import pass_through
from tunewise.methods.peft_config import inject_lora
from tunewise.models.blocks import Layers
from tunewise.models.coverage import measure_coverage
from tunewise.models.head import head_modules
from tunewise.models.layers import Target, find_targets
from tunewise.models.quantization import is_quantized

_NEARLY_ALL = 0.98  # routers and gates may be left out without a word


def attach(
    model: nn.Module,
    method: str | Method,
    *,
    rank: int | None = None,
    alpha: float | None = None,
    targets: str | Sequence[str] | Sequence[Target] = "qv",
    layers: Layers | None = None,
    seed: int = 0,
    chain: Chain | None = None,
    dropout: float = 0.0,
    lora_a_init: LoraAInit | None = None,
    layout: Layout | None = None,
    fold: str = "auto",
    adapter_name: str = "default",
    batches: Iterable[Mapping[str, Tensor]] | None = None,
    peft_options: Mapping[str, object] | None = None,
) -> Any:
    """Put a method onto a model, ready to train; the outputs stay the base model's, unless a warning says so.

    Args:
        model: a transformers model (or any module with linear layers), or a `PeftModel` that gets one more adapter.
        method: a name of the catalog, or a `Method`.
        rank: r; for column methods the number of columns; 8 unless given (`peft:road`: 1).
        alpha: the scale is alpha / rank; 2 x rank unless given. `paca`'s scale is 1 whatever alpha is.
        targets: `"qv"`, `"attention"`, `"all-linear"`, or names and patterns (see `models.layers.find_targets`).
            `"all-linear"` warns where it leaves out much of the blocks (experts that are no linear layers).
        layers: only targets in the blocks with these numbers (from 0, PEFT's `layers_to_transform`), or the `"last 2"`.
        seed: of every random choice made here; the global generator is neither read nor changed.
        chain: another schedule than the catalog's, for a method with a chain.
        dropout: on the adapter's input; column methods then take the additive path.
        lora_a_init: distribution of a random A: `"kaiming"` (stock PEFT's), `"normal"` (N(0, 0.02^2)), `"orthonormal"`.
        layout: of sampled columns: runs of a `"permutation"`, or a contiguous random `"block"`.
        fold: `"auto"`, `"never"` (additive path), or `"always"` (also into bf16 and fp16 weights, where small
            updates are rounded away).
        adapter_name: PEFT's name of the adapter.
        batches: for `lora-one`: batches with labels, over which the one full gradient is taken.
        peft_options: for `peft:NAME`: fields of PEFT's own config (`{"total_step": 1000}` for adalora).

    Returns:
        A `peft.PeftModel`; for `fft` and `head` the model itself. The task head is trained in every method.

    Raises:
        SpecError: unknown method, rank below 1, an option that the method has no use for.
        ModelError: an unknown target, a rank above a layer's size, a layer that can't be adapted.

    Example:
        >>> import torch, tunewise
        >>> base = torch.nn.Sequential(torch.nn.Linear(8, 4))
        >>> model = tunewise.attach(base, "r-cla", rank=2, targets=["0"], seed=1)
        >>> [(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
        [('base_model.model.0.lora_B.default.weight', (4, 2))]
    """
    row = _resolve(get_method(method), chain, lora_a_init, layout)
    rank = row.resolve_rank(rank)
    _check_options(row, rank, fold, batches is not None, bool(peft_options))
    alpha = 2.0 * rank if alpha is None else float(alpha)
    if row.scaling == "one":
        alpha = float(rank)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    head = tuple(head_modules(base))
    if not row.adapts:
        return _train_weights(model, Attachment(row, rank, alpha, seed, (), head, adapter_name))

    adapted = tuple(find_targets(base, targets, layers))
    if targets == "all-linear":
        adapted = _leave_out(base, adapted, rank)
        coverage = measure_coverage(base, adapted)
        if coverage.share < _NEARLY_ALL:
            warnings.warn(f"targets 'all-linear': {coverage.describe()}", stacklevel=2)
    if row.passed_through:
        return pass_through(model, Attachment(row, rank, alpha, seed, adapted, head, adapter_name), peft_options or {})
    check_ranks(row, rank, adapted)
    done = Attachment(row, rank, alpha, seed, adapted, head, adapter_name, dropout, fold)
    peft_model = inject_lora(model, done)
    configure_adapter_layers(peft_model, done)
    remember(peft_model, done)
    if batches is not None:
        start_at_gradient(peft_model, done, batches)
    return peft_model


def _leave_out(base: nn.Module, targets: tuple[Target, ...], rank: int) -> tuple[Target, ...]:
    """The targets without layers of fewer outputs than the rank, which would get an adapter larger than themselves (the
    gate of an expert has one output), and without layers whose names PEFT redirects to the experts of a mixture."""
    kind = _MODEL_TO_CONVERSION_PATTERN.get(getattr(getattr(base, "config", None), "model_type", ""), "")
    redirected = _MOE_TARGET_MODULE_MAPPING.get(kind, {})
    small = {t.name: t.name.rpartition(".")[2] for t in targets if t.out_features < rank}
    kept = [t for t in targets if t.name not in small and t.name.rpartition(".")[2] not in redirected]
    if small and kept:
        names = ", ".join(dict.fromkeys(small.values()))
        warnings.warn(f"targets 'all-linear': {names} left out, with fewer outputs than rank {rank}", stacklevel=3)
    return tuple(kept) or targets


def _check_options(row: Method, rank: int, fold: str, has_batches: bool, has_peft_options: bool) -> None:
    if rank < 1:
        raise SpecError(f"rank = {rank}: at least 1 is needed")
    if fold not in ("auto", "never", "always"):
        raise SpecError(f"fold = {fold!r}; choose 'auto', 'never' or 'always'")
    if has_batches != (row.start == "gradient"):
        raise SpecError(
            "lora-one starts from a gradient: pass batches=..., an iterable of batches with labels"
            if not has_batches
            else f"batches= means nothing to method {row.name!r}"
        )
    if has_peft_options and not row.passed_through:
        raise SpecError(f"peft_options= is for methods of PEFT ('peft:dora'), not for {row.name!r}")


def _resolve(method: Method, chain: Chain | None, lora_a_init: LoraAInit | None, layout: Layout | None) -> Method:
    if chain is not None and method.chain is None:
        raise SpecError(f"method {method.name!r} has no chain; use one that has (c3la, r-c3la, c-paca, cola, rac)")
    changes: dict[str, Any] = {"chain": chain, "lora_a_init": lora_a_init, "layout": layout}
    return replace(method, **{key: value for key, value in changes.items() if value is not None})


def _train_weights(model: nn.Module, done: Attachment) -> nn.Module:
    """fft: every weight; head: the task head alone."""
    if isinstance(model, PeftModel):
        raise SpecError(f"method {done.method.name!r} trains the model itself, and this one already carries an adapter")
    if done.method.trained == "head" and not done.head:
        raise ModelError(f"method 'head' needs a task head, and {type(model).__name__} has none")
    if done.method.trained == "all" and any(map(is_quantized, model.modules())):
        raise ModelError("method 'fft' trains every weight, and this model's are quantized; load it in full precision")
    for name, parameter in model.named_parameters():
        in_head = name.split(".")[0] in done.head
        parameter.requires_grad_(parameter.is_floating_point() and (done.method.trained == "all" or in_head))
    remember(model, done)
    return model
