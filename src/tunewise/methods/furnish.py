"""PEFT's LoRA layers made the method's: factors, what is frozen, behaviour where PEFT has none."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from tunewise.errors import ModelError, SpecError
from tunewise.methods.attachment import Attachment, adapted_layer, layer_adapters
from tunewise.methods.columns import ColumnAdapter
from tunewise.methods.fold import make_folding
from tunewise.methods.gather import InputGroup
from tunewise.methods.layer_adapter import LayerAdapter, keep_saved_form
from tunewise.methods.low_rank import LowRankAdapter, RowAdapter
from tunewise.methods.row_space import random_factor
from tunewise.models.layers import READ_TOGETHER, Target


def furnish(model: PeftModel, done: Attachment) -> None:
    """Every target's layer as the method has it. Raises `ModelError` where a weight that must be written is shared."""
    row = done.method
    shared = _shared_storages(model) if row.selects_columns or row.chain is not None else set()
    for target in done.targets:
        layer = adapted_layer(model, target)
        tied = _storage(layer.get_base_layer().weight) in shared
        if tied and done.fold == "always":
            raise ModelError(
                f"layer {target.name} shares its weight with another one; use fold='auto' (additive there)"
            )
        _furnish(layer, target, done, "never" if tied else done.fold, model.peft_config[done.adapter_name])
    _share_inputs(model, done)
    if layer_adapters(model, done.adapter_name):
        _guard_weighted_sums(model)


@torch.no_grad()
def _furnish(layer: Any, target: Target, done: Attachment, fold: str, config: Any) -> None:
    """The layer's factors as the method has them, and its behaviour where PEFT has none."""
    method, name = done.method, done.adapter_name
    frozen = {"AB": (), "B": ("lora_A",), "columns": ("lora_A",), "A": ("lora_B",)}[method.trained]
    if method.selects_columns:
        _put_adapter(ColumnAdapter, layer, target, done, config, fold=fold)
    elif method.trained == "A":
        _put_adapter(RowAdapter, layer, target, done, config)
    elif method.chain is not None or target.fused:
        _put_adapter(LowRankAdapter, layer, target, done, config, fold=fold)
    else:
        make_folding(layer)
        _draw_stock_factors(layer, target, done)
    layer.lean = layer.lean and fold != "never"
    layer.frozen_peft_weight_names = {**layer.frozen_peft_weight_names, name: frozen}
    layer._freeze_non_trainable_peft_weights(name)


def _draw_stock_factors(layer: Any, target: Target, done: Attachment) -> None:
    """A by the method's law, B zero. On the meta device there are no values to draw."""
    a, b = layer.lora_A[done.adapter_name].weight, layer.lora_B[done.adapter_name].weight
    if a.is_meta:
        return
    law, features = done.method.a_law, target.in_features
    a.copy_(random_factor(law, seed=done.seed, layer=target.name, link=0, rank=done.rank, features=features))
    b.zero_()


def _put_adapter(
    kind: Callable[..., LayerAdapter], layer: Any, target: Target, done: Attachment, config: Any, **options: Any
) -> None:
    """An adapter of ours as the layer's `LoraVariant`, drawn and switched on."""
    name = done.adapter_name
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
        method=done.method,
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
