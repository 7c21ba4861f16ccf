"""LoRA-One's preconditioner (2502.01235, Algorithm 1): steps that do not depend on the factors' conditioning."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from tunewise.errors import DivergedError, SpecError
from tunewise.methods.adapters.base import adapters_of


def precondition(optimizer: torch.optim.Optimizer, model: nn.Module, eps: float = 1e-6) -> None:
    """Before each step of `optimizer` from now on, the gradients of the factors are replaced by

        grad_A <- (B^T B + eps I)^-1 grad_A,    grad_B <- grad_B (A A^T + eps I)^-1.

    Both use the factors before the step. A frozen factor is left alone; slices of a fused projection are pairs of
    their own. Raises `SpecError` where the model has no low-rank factors, and `DivergedError` in a step where they
    have become too large.
    """
    pairs = _pairs(model)
    if not pairs:
        raise SpecError("nothing to precondition: the model has no pairs of low-rank factors")

    @torch.no_grad()
    def before_step(_: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for all_a, all_b, ranks, rows in pairs:
            for over_r, over_n in zip(ranks, rows, strict=True):
                a, b = all_a[over_r], all_b[over_n]
                if all_a.grad is not None:
                    all_a.grad[over_r] = _solve(b.T @ b, all_a.grad[over_r], eps)
                if all_b.grad is not None:
                    all_b.grad[over_n] = _solve(a @ a.T, all_b.grad[over_n].T, eps).T

    optimizer.register_step_pre_hook(before_step)


def _pairs(model: nn.Module) -> list[tuple[Any, Any, list[slice], list[slice]]]:
    """(A, B, rows of A, rows of B) of every adapter, the latter two part by part of a fused projection."""
    pairs: list[tuple[Any, Any, list[slice], list[slice]]] = []
    lora_layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in lora_layers:
        ours = adapters_of(layer)
        for name in layer.lora_A:
            a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
            if name not in ours:
                pairs.append((a, b, [slice(None)], [slice(None)]))
                continue
            ranks, rows, done = [], [], 0
            for p, block in enumerate(ours[name].parts_of(b)):
                ranks.append(slice(p * ours[name].rank, (p + 1) * ours[name].rank))
                rows.append(slice(done, done + len(block)))
                done += len(block)
            pairs.append((a, b, ranks, rows))
    return pairs


def _solve(gram: torch.Tensor, gradient: torch.Tensor, eps: float) -> torch.Tensor:
    """(gram + eps I)^-1 gradient in at least fp32; gram is r x r and positive semi-definite. Raises `DivergedError`
    where it is infinite, or so large that eps is lost in its rounding."""
    wide = torch.promote_types(gram.dtype, torch.float32)
    damped = gram.to(wide) + eps * torch.eye(len(gram), dtype=wide, device=gram.device)
    try:
        root = torch.linalg.cholesky(damped)
    except torch.linalg.LinAlgError:
        largest = float(gram.diagonal().max().sqrt())
        raise DivergedError(
            f"the factors have grown too large to be preconditioned (a row of length {largest:.2g}); lower the "
            "learning rate"
        ) from None
    return torch.cholesky_solve(gradient.to(wide), root)
