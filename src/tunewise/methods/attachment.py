"""The record of what `attach` did, kept on the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from tunewise.catalog import Method
from tunewise.errors import ModelError, SpecError
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
    """The record of what was attached to a model.

    Args:
        model: a model that `tunewise.attach` or `tunewise.load` returned.
        adapter_name: PEFT's name of the adapter; the active one unless given.

    Returns:
        An `Attachment`: `method`, `rank`, `alpha`, `scale`, `seed`, `targets` (the adapted layers), `head` (the modules
        of the task head), `adapter_name`, `dropout`, `fold`.

    Raises:
        SpecError: the model carries no method of tunewise.

    Example:
        >>> import torch, tunewise
        >>> model = tunewise.attach(torch.nn.Sequential(torch.nn.Linear(8, 4)), "cla", rank=2, targets=["0"])
        >>> record = tunewise.attachment(model)
        >>> record.method.name, record.rank, record.scale
        ('cla', 2, 2.0)
    """
    records: dict[str, Attachment] = getattr(model, "tunewise", {})
    name = adapter_name or getattr(model, "active_adapter", None) or "default"
    if isinstance(name, list):
        name = name[0]
    if name not in records and len(records) == 1 and adapter_name is None:
        name = next(iter(records))
    if name not in records:
        raise SpecError("this model carries no method of tunewise; call tunewise.attach(model, ...) first")
    return records[name]


def remember(model: nn.Module, done: Attachment) -> None:
    """Keep the record on the model, beside those of its other adapters."""
    records = dict(model.__dict__.get("tunewise", {}))
    records[done.adapter_name] = done
    model.__dict__["tunewise"] = records


def trainable_parameters(model: nn.Module) -> int:
    """The number of scalars that an optimizer over the model's trainable tensors updates.

    Args:
        model: any module. Tied tensors count once.

    Returns:
        The number of scalars in parameters with `requires_grad`.

    Example:
        >>> import torch, tunewise
        >>> model = tunewise.attach(torch.nn.Sequential(torch.nn.Linear(8, 4)), "cla", rank=2, targets=["0"])
        >>> tunewise.trainable_parameters(model)  # B: 4 outputs x 2 columns
        8
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def adapted_layer(model: nn.Module, target: Target) -> Any:
    """PEFT's LoRA layer of a target. Raises `ModelError` where PEFT adapted nothing."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    layer = base.get_submodule(target.name)
    if not isinstance(layer, LoraLayer):
        raise ModelError(
            f"layer {target.name} ({type(layer).__name__}) was not adapted by PEFT; leave it out of targets"
        )
    return layer
