"""What a model carries: the record that `attach` leaves on it, and its adapters layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from tunewise.catalog import Method
from tunewise.errors import ModelError, SpecError
from tunewise.methods.layer_adapter import LayerAdapter, adapters_of
from tunewise.models.layers import Target


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


def remember(model: nn.Module, done: Attachment) -> None:
    """Leave the record on the model, beside those of its other adapters."""
    known = dict(model.__dict__.get("tunewise", {}))
    known[done.adapter_name] = done
    model.__dict__["tunewise"] = known


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


def adapted_layer(model: nn.Module, target: Target) -> Any:
    """PEFT's LoRA layer of a target. Raises `ModelError` where PEFT adapted nothing."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    layer = base.get_submodule(target.name)
    if not isinstance(layer, LoraLayer):
        raise ModelError(
            f"layer {target.name} ({type(layer).__name__}) was not adapted by PEFT; leave it out of targets"
        )
    return layer
