"""Parameter groups of a method, and AdamW over them."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch
from torch import nn

from tunewise.errors import SpecError
from tunewise.methods.attachment import attachment
from tunewise.training.preconditioner import precondition

OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float = 0.0, head_lr: float | None = None
) -> list[dict[str, Any]]:
    """Groups over the trainable tensors, each with its learning rate and weight decay; see `optimizer`."""
    done = attachment(model)
    ratio = done.method.optimizer.ratio
    head_lr = lr if head_lr is None else head_lr
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if ".lora_B." in name:
            kind, rate = "B", lr * ratio
        elif ".lora_A." in name:
            kind, rate = "A", lr
        elif _in_head(name, done.head):
            kind, rate = "head", head_lr
        else:
            kind, rate = "weights", lr
        decays = parameter.ndim >= 2 and weight_decay > 0
        group = groups.setdefault(
            (kind, decays),
            {"name": kind, "params": [], "lr": rate, "weight_decay": weight_decay if decays else 0.0},
        )
        group["params"].append(parameter)
    return list(groups.values())


def optimizer(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    head_lr: float | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    preconditioned: bool | None = None,
    kind: OptimizerName = "adamw",
) -> torch.optim.Optimizer:
    """AdamW with the parameter groups that the method of a model needs.

    Args:
        model: A model that `attach` returned.
        lr: Learning rate of A and of changed weights; that of B is multiplied by the ratio of the method (lora+: 16).
        weight_decay: Of matrices; biases and norms have none.
        head_lr: Learning rate of the task head; `lr` unless given.
        betas: As in `torch.optim.AdamW`.
        eps: As in `torch.optim.AdamW`.
        preconditioned: Whether gradients of the factors are preconditioned (arXiv 2502.01235); as the method says
            unless given.
        kind: `"adamw"` of torch, or `"adamw_8bit"` and `"paged_adamw_8bit"` of bitsandbytes.

    Returns:
        The optimizer, fused where torch has that for the device.

    Example:
        >>> import torch, tunewise
        >>> base = torch.nn.Sequential(torch.nn.Linear(8, 4))
        >>> model = tunewise.attach(base, "lora+", rank=2, targets=["0"])
        >>> [(group["name"], round(group["lr"], 6)) for group in tunewise.optimizer(model, lr=1e-3).param_groups]
        [('A', 0.001), ('B', 0.016)]
    """
    done = attachment(model)
    groups = parameter_groups(model, lr=lr, weight_decay=weight_decay, head_lr=head_lr)
    options: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    adamw: torch.optim.Optimizer
    if kind == "adamw":
        devices = {p.device.type for group in groups for p in group["params"]}
        adamw = torch.optim.AdamW(groups, **options, fused=devices <= {"cpu", "cuda"})
    else:
        adamw = _in_8_bits(kind)(groups, **options)
    if done.method.optimizer.preconditioned if preconditioned is None else preconditioned:
        precondition(adamw, model)
    return adamw


def _in_8_bits(kind: OptimizerName) -> Any:
    """The class of bitsandbytes. Raises `SpecError` where that is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SpecError(f'optimizer {kind} needs bitsandbytes: pip install "tunewise[llm]"')
    import bitsandbytes.optim

    return bitsandbytes.optim.AdamW8bit if kind == "adamw_8bit" else bitsandbytes.optim.PagedAdamW8bit


def _in_head(name: str, head: tuple[str, ...]) -> bool:
    path = name.split(".")
    return any(part in head for part in path[:1] if path) or (
        "modules_to_save" in path and any(part in head for part in path)
    )
