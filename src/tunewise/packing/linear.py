"""A frozen linear layer under the adapters of several runs: one product with W, and one per kind of factor."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunewise.methods.columns import oriented
from tunewise.packing.stacks import NotPackable, Stack


class PackedLinear(nn.Module):
    """y_k = W x_k + bias + scale_k B_k A_k x_k, run by run along the batch: x is (runs x rows, ..., m).

    `stacks` are set by the pack, whose `runs` says how many runs the batch holds.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        weight = cast(Tensor, base.weight)
        if type(base) not in (nn.Linear, Conv1D) or type(weight.data) is not Tensor:
            raise NotPackable(f"a layer of type {type(base).__name__} is adapted")
        self.base = base
        self.runs = 1
        self.tokens = 0  # of each run, in the last forward
        self.stacks: list[Stack] = []

    def forward(self, x: Tensor) -> Tensor:
        self.tokens = x.shape[:-1].numel() // self.runs
        leaves = [leaf for stack in self.stacks for leaf in stack.trained]
        weight = oriented(self.base)
        return cast(Tensor, _Packed.apply(x, weight, cast(Any, self.base).bias, self.runs, self.stacks, *leaves))


class _Packed(torch.autograd.Function):
    """Forward and backward over (runs, tokens, features) views, in place on the base's output and on the gradient that
    the base hands down. Kept for the backward: A x (rank wide), and x itself only where an A is trained."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, runs: int, stacks: list[Stack], *leaves: Tensor
    ) -> Tensor:
        y = F.linear(x, weight, bias)
        wide, tall = x.reshape(runs, -1, x.shape[-1]), y.view(runs, -1, y.shape[-1])
        inners = []
        for stack in stacks:
            rows = wide[stack.start : stack.stop]
            if stack.columns is None:
                assert stack.a is not None
                inner = torch.bmm(rows, stack.a.mT)
            else:
                inner = torch.gather(rows, 2, _places(stack.columns, rows.shape[1]))
            inner.mul_(stack.scale)
            tall[stack.start : stack.stop].baddbmm_(inner, stack.update.mT)
            inners.append(inner if stack.b.requires_grad else None)
        keeps_x = any(stack.a is not None and stack.a.requires_grad for stack in stacks)
        ctx.save_for_backward(weight, x if keeps_x else None, *inners)
        ctx.runs, ctx.stacks, ctx.shape = runs, stacks, x.shape
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        weight, x, *inners = ctx.saved_tensors
        tall = grad_y.reshape(ctx.runs, -1, grad_y.shape[-1])
        below = (tall @ weight) if ctx.needs_input_grad[0] else None
        wide = None if x is None else x.reshape(ctx.runs, -1, x.shape[-1])
        grads: list[Tensor] = []
        for stack, inner in zip(ctx.stacks, inners, strict=True):
            g = tall[stack.start : stack.stop]
            trains_a = stack.a is not None and stack.a.requires_grad
            if trains_a or below is not None:
                back = torch.bmm(g, stack.update).mul_(stack.scale)  # (runs, tokens, r)
                if trains_a:
                    assert wide is not None
                    grads.append(torch.bmm(back.mT, wide[stack.start : stack.stop]))
                if below is not None and stack.columns is None:
                    below[stack.start : stack.stop].baddbmm_(back, stack.a)
                elif below is not None:
                    below[stack.start : stack.stop].scatter_add_(2, _places(stack.columns, back.shape[1]), back)
            if inner is not None:
                grads.append(torch.bmm(inner.mT, g).mT.contiguous())  # a CPU is up to twice as fast in this order
        grad_x = None if below is None else below.view(ctx.shape)
        return grad_x, None, None, None, None, *grads


def _places(columns: Tensor, tokens: int) -> Tensor:
    """(runs, r) column numbers as an index into (runs, tokens, m)."""
    return columns[:, None, :].expand(-1, tokens, -1)
