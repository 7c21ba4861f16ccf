"""Parameter groups of a method, and AdamW over them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tunewise.methods.attachment import attachment
from tunewise.training.preconditioner import precondition


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float = 0.0, head_lr: float | None = None
) -> list[dict[str, Any]]:
    """Groups over the trainable tensors: B at the method's ratio x `lr` (lora+: 16, once), A and changed weights at
    `lr`, the task head at `head_lr` (`lr` unless given), biases and norms without weight decay."""
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
) -> torch.optim.AdamW:
    """AdamW with the groups of the model's method: fused where torch has it for the device, else foreach.

    `preconditioned` scales the factors' gradients as in 2502.01235 before AdamW sees them; the method says so unless
    it is given here.
    """
    done = attachment(model)
    groups = parameter_groups(model, lr=lr, weight_decay=weight_decay, head_lr=head_lr)
    devices = {p.device.type for group in groups for p in group["params"]}
    fused = devices <= {"cpu", "cuda"}
    adamw = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)
    if done.method.optimizer.preconditioned if preconditioned is None else preconditioned:
        precondition(adamw, model)
    return adamw


def _in_head(name: str, head: tuple[str, ...]) -> bool:
    path = name.split(".")
    return any(part in head for part in path[:1] if path) or (
        "modules_to_save" in path and any(part in head for part in path)
    )
