"""LoRA-One's preconditioner (2502.01235, Algorithm 1): steps that do not depend on the factors' conditioning."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from tunewise.errors import SpecError


def precondition(optimizer: torch.optim.Optimizer, model: nn.Module, eps: float = 1e-6) -> None:
    """From now on, before each step of `optimizer`, the factors' gradients are replaced by

        grad_A <- (B^T B + eps I)^-1 grad_A,    grad_B <- grad_B (A A^T + eps I)^-1.

    Both use the factors before the step. A pair of which one is frozen is preconditioned in the other alone. Raises
    `SpecError` where the model has no low-rank factors.
    """
    lora_layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    pairs = [
        (layer.lora_A[name].weight, layer.lora_B[name].weight)
        for layer in lora_layers
        for name in layer.lora_A
        if layer.lora_B[name].weight.shape[1] == layer.lora_A[name].weight.shape[0]
    ]
    if not pairs:
        raise SpecError("nothing to precondition: the model has no pairs of low-rank factors")

    @torch.no_grad()
    def before_step(_: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for a, b in pairs:
            grad_a, grad_b = a.grad, b.grad
            if grad_a is not None:
                grad_a.copy_(_solve(b.T @ b, grad_a, eps))
            if grad_b is not None:
                grad_b.copy_(_solve(a @ a.T, grad_b.T, eps).T)

    optimizer.register_step_pre_hook(before_step)


def _solve(gram: torch.Tensor, gradient: torch.Tensor, eps: float) -> torch.Tensor:
    """(gram + eps I)^-1 gradient in at least fp32; gram is r x r and positive semi-definite."""
    wide = torch.promote_types(gram.dtype, torch.float32)
    damped = gram.to(wide) + eps * torch.eye(len(gram), dtype=wide, device=gram.device)
    return torch.cholesky_solve(gradient.to(wide), torch.linalg.cholesky(damped))
