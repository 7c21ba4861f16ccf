"""The updates of a model in memory, for measures that follow a run along its snapshots."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from tunewise.errors import MeasureError
from tunewise.measures.updates.folder import updates_between
from tunewise.measures.updates.layer import LayerUpdate, Updates
from tunewise.methods.adapters.base import Adapter, adapters_of
from tunewise.methods.attachment import attachment
from tunewise.methods.delta import delta
from tunewise.models.layers import linear_layers


@torch.no_grad()
def live_updates(model: nn.Module, base: nn.Module) -> Updates:
    """The present update of each linear layer. Raises `MeasureError` for a method that trains the task head alone."""
    done = attachment(model)
    if done.method.trained == "head":
        raise MeasureError("trains the task head alone, so there is no dW")
    if done.method.trained == "all":
        return updates_between(base, model)
    linears = linear_layers(base)
    if done.method.passed_through:
        dense = delta(model)
        return Updates(
            [LayerUpdate.of_dense(name, linears[name], lambda d=d: d) for name, d in dense.items()],  # type: ignore[misc]
            done.method.name,
        )
    assert isinstance(model, PeftModel)
    inner = model.get_base_model()
    found = []
    for target in done.targets:
        layer: Any = inner.get_submodule(target.name)
        ours = adapters_of(layer).get(done.adapter_name)
        left, right = _of_adapter(ours) if ours is not None else _of_plain(layer, done.adapter_name)
        found.append(LayerUpdate.of_factors(target.name, linears[target.name], left, right))
    return Updates(found, done.method.name)


def _of_plain(layer: Any, name: str) -> tuple[Tensor, Tensor]:
    return layer.lora_B[name].weight.double() * layer.scaling[name], layer.lora_A[name].weight


def _of_adapter(adapter: Adapter) -> tuple[Tensor, Tensor]:
    right, left = adapter.saved_factors()
    return left.double() * adapter.scale, right
