"""Low-rank factors A and B: lora, asym, lora+, rslora, lora-one, and chains of them (cola, rac).

Finished links are written into W where W can be written, and a step costs what it cost in the first link; elsewhere
they are added beside the active link.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunewise.methods.adapters.base import Adapter
from tunewise.methods.adapters.fold import Fold
from tunewise.methods.adapters.fusing import fast_apply, is_bare, is_observed, is_plain, sole_active_adapter
from tunewise.methods.adapters.products import gradient_of_b, scaled_product
from tunewise.methods.draws import random_factor
from tunewise.registry import ADAPTERS


class LowRankAdapter(Adapter):
    """dW = s sum_j B_j A_j; `where` is A_j (P r, m)."""

    @property
    def is_plain_lora(self) -> bool:  # type: ignore[override]
        return type(self) is LowRankAdapter and self.method.chain is None and not self.target.fused

    def draw_part(self, part: int) -> Tensor:
        if self.a.is_meta:  # no values to draw: an 8 B model takes a second
            return self.a.split(self.rank)[part]
        return random_factor(self.method.lora_a_init, **self.stream_options(part))

    def place(self, where: Tensor) -> None:
        self.a.copy_(where)
        self.b.zero_()

    def identify(self, a: Tensor, b: Tensor) -> Tensor:
        return a

    @property
    def can_fold(self) -> bool:
        return bool(self.finished)

    def make_fold(self) -> Fold:
        return LinkFold(self)

    def fused_forward(self, x: Tensor) -> Tensor | None:
        layer, name = self.layer, self.name
        modules = layer._modules
        base = modules["base_layer"]
        if not layer.may_fuse or layer._disable_adapters or layer.merged_adapters or not is_plain(base):
            return None
        weight, bias = base._parameters["weight"], base._parameters["bias"]
        if x.dtype != weight.dtype or self.target.fused or is_observed():
            return None
        if not (is_bare(modules["lora_A"]._modules[name]) and is_bare(modules["lora_B"]._modules[name])):
            return None
        if self.finished and not self._finished_links_in(weight):
            return None
        if layer.lora_bias[name] or type(modules["lora_dropout"]._modules[name]) is not nn.Identity:
            return None
        if not getattr(layer, "cast_input_dtype_enabled", True):
            return None
        a, b = self.factors()
        return cast(Tensor, _low_rank_linear(x, weight, bias, a, b, layer.scaling[name]))

    def _finished_links_in(self, weight: Tensor) -> bool:
        if self.layer._fold is None:
            self.layer.sync_fold()
        fold = self.layer._fold
        return fold is not None and fold.weight is weight and fold.scale == self.scale


class LinkFold(Fold):
    """W = W0 + the finished links of a low-rank chain, with a copy of W0; the active link stays beside W."""

    @torch.no_grad()
    def __init__(self, adapter: LowRankAdapter) -> None:
        super().__init__(adapter.layer, adapter.name, adapter.target.name)
        self.adapter = adapter
        view = self.view
        self.original = view.clone()
        links = adapter.dense_of(adapter.finished, torch.promote_types(view.dtype, torch.float32))
        view.copy_(links.add_(view))

    @torch.no_grad()
    def undo(self) -> None:
        self.view.copy_(self.original)

    def pristine(self) -> Tensor:
        conv = isinstance(self.layer.get_base_layer(), Conv1D)
        return (self.original.T if conv else self.original).clone(memory_format=torch.contiguous_format)

    def fused_forward(self, x: Tensor) -> Tensor | None:
        return self.adapter.fused_forward(x) if sole_active_adapter(self.layer) == self.name else None


class _LowRankLinear(torch.autograd.Function):
    """x (..., m) -> x W^T + bias + s (x A^T) B^T, summed in place. x A^T is kept, and x where A is trained."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        y = F.linear(x, weight, bias)
        inner = torch.mm(x.reshape(-1, x.shape[-1]).to(a.dtype), a.T)
        flat = y.view(-1, y.shape[-1])
        if y.dtype == b.dtype:
            flat.addmm_(inner, b.T, alpha=scale)
        else:  # the sum is rounded once
            flat.add_(torch.mm(inner, b.T), alpha=scale)
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, inner, weight, a, b)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, weight, a, b = ctx.saved_tensors
        to_x, to_a, to_b = (ctx.needs_input_grad[i] for i in (0, 3, 4))
        flat = grad_y.reshape(-1, grad_y.shape[-1])
        shape = (*grad_y.shape[:-1], weight.shape[1])
        wide = flat.to(b.dtype)
        if torch.is_grad_enabled():
            return _differentiable(ctx, x, weight, a, b, flat, wide, shape)
        grad_x = grad_a = grad_b = None
        if to_x or to_a:
            grad_inner = scaled_product(wide, b, ctx.scale)
        if to_x:
            grad_x = torch.mm(flat, weight)
            if grad_x.dtype == a.dtype:
                grad_x.addmm_(grad_inner, a)
            else:
                grad_x.add_(torch.mm(grad_inner, a))
            grad_x = grad_x.view(shape)
        if to_a:
            grad_a = torch.mm(grad_inner.T, x.reshape(-1, x.shape[-1]).to(a.dtype))
        if to_b:
            grad_b = gradient_of_b(wide, inner, ctx.scale, b.dtype)
        return grad_x, None, None, grad_a, grad_b, None


def _differentiable(
    ctx: Any, x: Tensor | None, weight: Tensor, a: Tensor, b: Tensor, flat: Tensor, wide: Tensor, shape: tuple[int, ...]
) -> Any:
    """The same gradients from operations that autograd follows, for a second derivative."""
    if x is None:
        raise RuntimeError("a layer whose A is frozen keeps no input for a second derivative; attach with fold='never'")
    rows = x.reshape(-1, x.shape[-1]).to(a.dtype)
    grad_inner = ctx.scale * (wide @ b)
    grad_x = flat @ weight + (grad_inner @ a).to(flat.dtype)
    return grad_x.view(shape), None, None, grad_inner.T @ rows, ctx.scale * (wide.T @ (rows @ a.T)), None


_low_rank_linear = fast_apply(_LowRankLinear)
ADAPTERS.register("low-rank", LowRankAdapter)
