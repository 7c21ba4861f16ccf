"""A method onto a model: `attach` gives a `peft.PeftModel` (for `fft` and `head` the model itself)."""

from __future__ import annotations

import copy
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunewise.errors import ModelError, SpecError
from tunewise.methods.catalog import ALaw, Chain, Layout, Method, get_method
from tunewise.methods.columns import ColumnAdapter
from tunewise.methods.fold import make_folding
from tunewise.methods.gather import InputGroup
from tunewise.methods.layer_adapter import LayerAdapter, adapters_of, keep_saved_form
from tunewise.methods.low_rank import LowRankAdapter, RowAdapter
from tunewise.methods.pass_through import inject, peft_config
from tunewise.methods.row_space import random_factor
from tunewise.models.blocks import Layers
from tunewise.models.head import head_modules
from tunewise.models.layers import READ_TOGETHER, Target, find_targets, linear_layers


@dataclass(frozen=True)
class Attachment:
    """What `attach` did: kept on the model as `model.tunewise[adapter_name]`."""

    method: Method
    rank: int
    alpha: float
    seed: int
    targets: tuple[Target, ...]
    head: tuple[str, ...]
    adapter_name: str = "default"
    dropout: float = 0.0
    fold: str = "auto"

    @property
    def scale(self) -> float:
        return self.method.scale(self.rank, self.alpha)


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
        return _pass_through(model, Attachment(row, rank, alpha, seed, found, head, adapter_name), peft_options or {})
    for target in found:
        _check_rank(row, rank, target)
    done = Attachment(row, rank, alpha, seed, found, head, adapter_name, dropout, fold)
    peft_model = _inject(model, done)
    shared = _shared_storages(peft_model) if row.selects_columns or row.chain is not None else set()
    for target in found:
        layer = _layer(peft_model, target)
        tied = _storage(layer.get_base_layer().weight) in shared
        if tied and fold == "always":
            raise ModelError(
                f"layer {target.name} shares its weight with another one; use fold='auto' (additive there)"
            )
        _furnish(layer, target, done, "never" if tied else fold, peft_model.peft_config[adapter_name])
    _share_inputs(peft_model, done)
    if layer_adapters(peft_model, adapter_name):
        _guard_weighted_sums(peft_model)
    _remember(peft_model, done)
    if row.start == "gradient":
        from tunewise.methods.one_step import start_at_gradient

        assert batches is not None
        start_at_gradient(peft_model, done, batches)
    return peft_model


def attachment(model: nn.Module, adapter_name: str | None = None) -> Attachment:
    """What was attached to the model (the active adapter's). Raises `SpecError` where nothing was."""
    known: dict[str, Attachment] = getattr(model, "tunewise", {})
    name = adapter_name or getattr(model, "active_adapter", None) or "default"
    if isinstance(name, list):
        name = name[0]
    if name not in known and len(known) == 1 and adapter_name is None:
        name = next(iter(known))
    if name not in known:
        raise SpecError("this model carries no method of tunewise; call tunewise.attach(model, ...) first")
    return known[name]


def trainable_parameters(model: nn.Module) -> int:
    """Number of scalars that an optimizer over the model's trainable tensors updates (tied ones counted once)."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def layer_adapters(model: nn.Module, adapter_name: str | None = None) -> list[LayerAdapter]:
    """The model's adapters that are behaviour of ours (column methods, chains, slices), layer by layer."""
    return [
        adapter
        for module in model.modules()
        if isinstance(module, LoraLayer)
        for name, adapter in adapters_of(module).items()
        if adapter_name is None or name == adapter_name
    ]


def delta(model: nn.Module, base: nn.Module | None = None) -> dict[str, Tensor]:
    """dW of every adapted layer: {layer name: fp32 (out, in)}, alpha / rank and all links included.

    For `fft` the base model must be given, since no copy of it is kept; for `head` the result is empty.
    """
    done = attachment(model)
    if done.method.trained == "head":
        return {}
    if done.method.trained == "all":
        if base is None:
            raise SpecError("full fine-tuning keeps no copy of the base weights; call delta(model, base=...)")
        before = {name: _out_in(module) for name, module in linear_layers(base).items()}
        after = {name: _out_in(module) for name, module in linear_layers(model).items()}
        return {name: (after[name] - before[name]).float() for name in after}
    return {target.name: layer_delta(model, target) for target in done.targets}


def layer_delta(model: nn.Module, target: Target) -> Tensor:
    """dW of one adapted layer, fp32 (out, in), alpha / rank and all links included; not for `fft` and `head`."""
    done = attachment(model)
    if done.method.passed_through:
        return _merged_difference(model, target)
    layer = _layer(model, target)
    ours = adapters_of(layer).get(done.adapter_name)
    if ours is not None:
        return ours.delta()
    dense = layer.get_delta_weight(done.adapter_name).detach().float()
    return dense.T if layer.fan_in_fan_out else dense


def _merged_difference(model: nn.Module, target: Target) -> Tensor:
    """dW of a method that may not be additive (DoRA): a copy of the layer, merged, minus the layer."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    layer: Any = copy.deepcopy(base.get_submodule(target.name))
    before = _out_in(layer.get_base_layer()).clone().float()
    layer.merge()
    return _out_in(layer.get_base_layer()).float() - before


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
    _remember(model, done)
    return model


def _pass_through(model: nn.Module, done: Attachment, options: Mapping[str, Any]) -> PeftModel:
    """A method of PEFT's own. Fused projections are adapted whole: PEFT has no slices."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    whole = tuple(replace(t, parts=((0, t.out_features),)) for t in done.targets)
    config = peft_config(
        done.method.name.removeprefix("peft:"),
        rank=done.rank,
        alpha=done.alpha,
        target_modules=_short_names([t.name for t in whole], list(linear_layers(base))),
        head=list(done.head),
        task_type=_task_type(base),
        options=options,
    )
    if isinstance(model, PeftModel):
        raise SpecError(f"method {done.method.name!r} can't be a second adapter; give it a fresh base model")
    peft_model = inject(model, config, done.adapter_name, done.seed)
    _remember(peft_model, replace(done, targets=whole))
    return peft_model


def _inject(model: nn.Module, done: Attachment) -> PeftModel:
    """PEFT's own injection. Its random initial values are drawn aside: the global generator is left alone."""
    fused = {t.name: len(t.parts) * done.rank for t in done.targets if t.fused}
    # PEFT's root scaling fits one factor pair a layer; elsewhere alpha is set so that alpha / rank is the scale.
    plain = done.method.trained == "AB" and done.method.chain is None and not fused
    by_root = done.method.scaling == "alpha/sqrt(r)" and plain
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    linears = linear_layers(base)
    config = LoraConfig(
        r=done.rank,
        lora_alpha=_tidy(
            done.scale * done.rank if done.method.scaling == "alpha/sqrt(r)" and not by_root else done.alpha
        ),
        lora_dropout=done.dropout,
        target_modules=_short_names([t.name for t in done.targets], list(linears)),
        rank_pattern=fused,
        alpha_pattern={name: _tidy(done.scale * rank) for name, rank in fused.items()},
        modules_to_save=list(done.head) or None,
        use_rslora=by_root,
        fan_in_fan_out=all(isinstance(linears[t.name], Conv1D) for t in done.targets),
        task_type=_task_type(base),
    )
    with torch.random.fork_rng(devices=[]):
        if isinstance(model, PeftModel):
            model.add_adapter(done.adapter_name, config)
            model.set_adapter(done.adapter_name)
            return model
        # A model without weights (meta device) gets factors without values: counting an 8 B model takes a second.
        on_meta = any(p.is_meta for p in model.parameters())
        return get_peft_model(model, config, adapter_name=done.adapter_name, low_cpu_mem_usage=on_meta)


@torch.no_grad()
def _furnish(layer: Any, target: Target, done: Attachment, fold: str, config: Any) -> None:
    """The layer's factors as the method has them, and its behaviour where PEFT has none."""
    method, name = done.method, done.adapter_name
    frozen = {"AB": (), "B": ("lora_A",), "columns": ("lora_A",), "A": ("lora_B",)}[method.trained]
    kind: type[LayerAdapter] | None = None
    options: dict[str, Any] = {}
    if method.selects_columns:
        kind, options = ColumnAdapter, {"fold": fold}
    elif method.trained == "A":
        kind = RowAdapter
    elif method.chain is not None or target.fused:
        kind, options = LowRankAdapter, {"fold": fold}
    if kind is None:
        make_folding(layer)
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        if not a.is_meta:  # on the meta device there are no values to draw
            a.copy_(
                random_factor(
                    method.a_law,
                    seed=done.seed,
                    layer=target.name,
                    link=0,
                    rank=done.rank,
                    features=target.in_features,
                )
            )
            b.zero_()
    else:
        factor = layer.lora_B[name].weight
        if target.fused:
            rows = sum(stop - start for start, stop in target.parts)
            layer.lora_B[name].weight = nn.Parameter(factor.new_zeros(rows, done.rank))
        if kind is ColumnAdapter:
            # The selector in the base's own precision: PEFT then hands x on as it is, without a wider copy.
            weight = layer.get_base_layer().weight
            if weight.is_floating_point():
                layer.lora_A[name].weight.data = layer.lora_A[name].weight.data.to(weight.dtype)
        adapter = kind(
            layer,
            name,
            target=target,
            method=method,
            rank=done.rank,
            scale=done.scale,
            seed=done.seed,
            config=config,
            **options,
        )
        layer.lora_variant[name] = adapter
        keep_saved_form(layer)
        make_folding(layer)
        adapter.describe()
        adapter.draw()
        adapter.engage()
    layer.lean = layer.lean and fold != "never"
    layer.frozen_peft_weight_names = {**layer.frozen_peft_weight_names, name: frozen}
    layer._freeze_non_trainable_peft_weights(name)


def _guard_weighted_sums(model: PeftModel) -> None:
    """PEFT combines adapters from their active tensors alone; refuse where those are not the whole update."""
    tuner: Any = model.base_model

    def add_weighted_adapter(self: Any, adapters: list[str], *args: Any, **kwargs: Any) -> Any:
        for adapter in layer_adapters(self):
            if adapter.name in adapters and not adapter.is_stock:
                raise SpecError(
                    f"adapter {adapter.name!r} ({adapter.method.name}) can't be combined in memory: its tensors are "
                    "not plain LoRA factors; save it, and combine the saved folders"
                )
        return type(self).add_weighted_adapter(self, adapters, *args, **kwargs)

    tuner.add_weighted_adapter = MethodType(add_weighted_adapter, tuner)


def _share_inputs(model: PeftModel, done: Attachment) -> None:
    """Sibling layers that read one input take its columns together."""
    families: dict[tuple[str, frozenset[str], int], list[ColumnAdapter]] = defaultdict(list)
    for adapter in layer_adapters(model, done.adapter_name):
        if isinstance(adapter, ColumnAdapter):
            parent, _, leaf = adapter.target.name.rpartition(".")
            kin = next((names for names in READ_TOGETHER if leaf in names), frozenset({leaf}))
            families[parent, kin, adapter.target.in_features].append(adapter)
    for members in families.values():
        group = InputGroup(members)
        for member in members:
            member.group = group


def _shared_storages(model: nn.Module) -> set[int]:
    """Storages that more than one parameter name reaches: tied weights, and views into one buffer. Writing columns
    into one of them would change the others."""
    storages = Counter(_storage(p) for _, p in model.named_parameters(remove_duplicate=False))
    return {storage for storage, count in storages.items() if storage is not None and count > 1}


def _storage(parameter: Tensor) -> int | None:
    """Where the values lie; None for what has no plain storage (quantized, meta)."""
    if type(parameter.data) is not Tensor or parameter.is_meta:
        return None
    return parameter.untyped_storage().data_ptr() or None


def _remember(model: nn.Module, done: Attachment) -> None:
    known = dict(model.__dict__.get("tunewise", {}))
    known[done.adapter_name] = done
    model.__dict__["tunewise"] = known


def _layer(model: nn.Module, target: Target) -> Any:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    layer = base.get_submodule(target.name)
    if not isinstance(layer, LoraLayer):
        raise ModelError(
            f"layer {target.name} ({type(layer).__name__}) was not adapted by PEFT; leave it out of targets"
        )
    return layer


def _out_in(module: nn.Module) -> Tensor:
    weight: Any = module.weight
    return (weight.T if isinstance(module, Conv1D) else weight).detach()


def _short_names(names: list[str], linears: list[str]) -> list[str]:
    """Leaf names where they select exactly these layers (what other readers of adapters expect), else full names."""
    leaves = sorted({name.rpartition(".")[2] for name in names})
    selected = [name for name in linears if name.rpartition(".")[2] in leaves]
    return leaves if sorted(selected) == sorted(names) else names


def _task_type(model: nn.Module) -> TaskType | None:
    name = type(model).__name__
    for ending, kind in (
        ("ForSequenceClassification", TaskType.SEQ_CLS),
        ("ForTokenClassification", TaskType.TOKEN_CLS),
        ("ForQuestionAnswering", TaskType.QUESTION_ANS),
        ("ForCausalLM", TaskType.CAUSAL_LM),
        ("LMHeadModel", TaskType.CAUSAL_LM),
    ):
        if name.endswith(ending):
            return kind
    return None


def _tidy(number: float) -> Any:
    """An int where it is one: what PEFT's config files hold."""
    return int(number) if math.isfinite(number) and number == int(number) else number
