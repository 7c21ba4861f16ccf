"""Autograd nodes of column adapters. Of the input only x[..., cols] is kept for the backward."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunewise.methods.adapters.fusing import fast_apply
from tunewise.methods.adapters.input_groups import ColumnSelection
from tunewise.methods.adapters.products import gradient_of_b
from tunewise.models.fused import Part


def refuse_second_derivative() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError("a folded column method has no second derivative; attach it with fold='never'")


class ColumnGradient(torch.autograd.Function):
    """y -> y, where B is in W already: grad_B = s grad_y^T x_cols, block under block; x_cols (N, P r) is kept."""

    @staticmethod
    def forward(y: Tensor, taken: Tensor, b: Tensor, scale: float, parts: tuple[Part, ...]) -> Tensor:
        # Not a view, which the next module could not change in place; and not y marked dirty: an output that is a view
        # (any layer with a bias) would then be copied three times in the backward.
        return y.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, taken, b, ctx.scale, ctx.parts = inputs
        ctx.save_for_backward(taken)
        ctx.dtype = b.dtype

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        (rows,) = ctx.saved_tensors
        grad_b = gradient_of_b(grad_y.reshape(-1, grad_y.shape[-1]), rows, ctx.scale, ctx.dtype, ctx.parts)
        return grad_y, None, grad_b, None, None


class _ColumnsBeside(torch.autograd.Function):
    """x (..., m) -> x W^T + bias + sum over links of s x[..., cols] B^T, in place, where B can't be in W."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        b: Tensor,
        origin: Tensor | None,
        selection: ColumnSelection,
        finished: list[tuple[Tensor, Tensor]],
        scale: float,
    ) -> Tensor:
        y = F.linear(x, weight, bias)
        flat, inputs = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
        taken = selection.gather(x)
        # All links in one product: the sum is rounded once.
        rows = [*(inputs.index_select(1, columns) for columns, _ in finished), taken]
        updates = [*(done for _, done in finished), b if origin is None else b - origin]
        factors = [_factor(update, scale, y) for update in updates]
        flat.addmm_(torch.cat(rows, dim=1), torch.cat(factors, dim=1).T)
        ctx.save_for_backward(taken, weight, b)
        ctx.scale, ctx.origin, ctx.finished = scale, origin, list(finished)
        ctx.columns, ctx.run = selection.columns, selection.run
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        rows, weight, b = ctx.saved_tensors
        flat = grad_y.reshape(-1, grad_y.shape[-1])
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.mm(flat, weight)
            factor = _factor(b if ctx.origin is None else b - ctx.origin, ctx.scale, flat)
            if ctx.run is not None:
                grad_x[:, ctx.run[0] : ctx.run[1]].addmm_(flat, factor)
            else:
                grad_x.index_add_(1, ctx.columns, torch.mm(flat, factor))
            for columns, done in ctx.finished:
                grad_x.index_add_(1, columns, torch.mm(flat, _factor(done, ctx.scale, flat)))
            grad_x = grad_x.view(*grad_y.shape[:-1], weight.shape[1])
        grad_b = gradient_of_b(flat, rows, ctx.scale, b.dtype) if ctx.needs_input_grad[3] else None
        return grad_x, None, None, grad_b, None, None, None, None


def _factor(update: Tensor, scale: float, like: Tensor) -> Tensor:
    """s times an update of columns, in the precision of `like`. Computed again in the backward rather than kept."""
    return (update * scale).to(like.dtype)


columns_beside = fast_apply(_ColumnsBeside)
