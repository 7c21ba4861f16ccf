"""Adapters of tunewise put onto PEFT's LoRA layers, as the method needs them."""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from peft import PeftModel

from tunewise.catalog import Method
from tunewise.errors import ModelError, SpecError
from tunewise.methods.adapters.base import Adapter, layer_adapters
from tunewise.methods.attachment import Attachment, adapted_layer
from tunewise.methods.folding_layer import make_folding
from tunewise.methods.tied import shared_storages, storage_of
from tunewise.models.layers import Target
from tunewise.registry import ADAPTERS

_FROZEN: dict[str, tuple[str, ...]] = {"AB": (), "B": ("lora_A",), "columns": ("lora_A",), "A": ("lora_B",)}


def check_ranks(method: Method, rank: int, targets: Sequence[Target]) -> None:
    """Raises `ModelError` where a layer can't have an adapter of this rank."""
    kind: type[Adapter] = ADAPTERS.get(method.adapter_class)
    for target in targets:
        kind.check_rank(method, rank, target)


def configure_adapter_layers(model: PeftModel, done: Attachment) -> None:
    """Put the method's adapter on every target. Raises `ModelError` where a weight that must be written is shared."""
    method = done.method
    kind: type[Adapter] = ADAPTERS.get(method.adapter_class)
    shared = shared_storages(model)
    config = model.peft_config[done.adapter_name]
    for target in done.targets:
        layer = adapted_layer(model, target)
        make_folding(layer)
        tied = storage_of(layer.get_base_layer().weight) in shared
        layer.is_tied, layer.model_config = tied, getattr(model, "config", None) if tied else None
        if tied and done.fold == "always":
            raise ModelError(
                f"layer {target.name} shares its weight with another one; use fold='auto' (additive there)"
            )
        scattered = any(part.repeats > 1 for part in target.parts)
        _put_adapter(kind, layer, target, done, config, "never" if tied or scattered else done.fold)
    kind.share_inputs(layer_adapters(model, done.adapter_name))
    _guard_weighted_sums(model)


@torch.no_grad()
def _put_adapter(kind: type[Adapter], layer: Any, target: Target, done: Attachment, config: Any, fold: str) -> None:
    name = done.adapter_name
    adapter = kind(layer, target, done, config, fold)
    layer.tunewise_adapters[name] = adapter
    adapter.prepare_layer()
    if not adapter.is_plain_lora:
        layer.lora_variant[name] = adapter
    adapter.describe()
    adapter.start_link()
    adapter.fold()
    layer.may_fuse = layer.may_fuse and fold != "never"
    layer.frozen_peft_weight_names = {**layer.frozen_peft_weight_names, name: _FROZEN[done.method.trained]}
    layer._freeze_non_trainable_peft_weights(name)


def _guard_weighted_sums(model: PeftModel) -> None:
    """PEFT combines adapters from their active tensors alone; refuse where these are not the full update."""
    tuner: Any = model.base_model

    def add_weighted_adapter(self: Any, adapters: list[str], *args: object, **kwargs: object) -> Any:
        for adapter in layer_adapters(self):
            if adapter.name in adapters and not adapter.is_stock:
                raise SpecError(
                    f"adapter {adapter.name!r} ({adapter.method.name}) can't be combined in memory: its tensors are "
                    "not plain LoRA factors; save it, and combine the saved folders"
                )
        return type(self).add_weighted_adapter(self, adapters, *args, **kwargs)

    tuner.add_weighted_adapter = MethodType(add_weighted_adapter, tuner)
