"""An adapted linear layer as one autograd node: its product with W, and the gradients of the factors.

PEFT's forward is made of modules: a low-rank update is two products, a scaling and a sum of whole outputs, each of
which makes a tensor of the output's size. Here the update is accumulated into the output in place, the input's gradient
likewise, and the input is kept once, in its own precision, for all layers that read it. A folded column method is the
layer's own product, and the product of r columns of x with the output's gradient.

Where something asks for PEFT's own way (hooks on the layer, autocast, a transform of `torch.func`, dropout, another
kind of layer, compilation), `lean_output` says so by None.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as module_hooks

from tunewise.methods.columns import ColumnAdapter, gradient_of_b, scaled_product
from tunewise.methods.folded import FoldedColumns
from tunewise.methods.low_rank import LowRankAdapter


def lean_output(layer: Any, x: Tensor) -> Tensor | None:
    """The output of a PEFT LoRA layer whose one active adapter is a folded column adapter or a low-rank pair; None
    where this is not for us to compute."""
    fold = layer._fold
    if type(fold) is FoldedColumns:
        return _over_columns(layer, fold, x)
    active = layer._active_adapter
    name = active if isinstance(active, str) else active[0] if len(active) == 1 else None
    modules = layer._modules
    base = modules["base_layer"]
    if name is None or not layer.lean or layer._disable_adapters or layer.merged_adapters or not _is_plain(base):
        return None
    weight, bias = base._parameters["weight"], base._parameters["bias"]
    if x.dtype != weight.dtype or _elsewhere():
        return None
    adapter = layer.lora_variant.get(name)
    if adapter is not None and type(adapter) is not LowRankAdapter:
        return None
    down, up = modules["lora_A"]._modules.get(name), modules["lora_B"]._modules.get(name)
    if not (_is_bare(down) and _is_bare(up)):
        return None
    if adapter is not None and adapter.target.fused:
        return None
    if fold is None:
        if adapter is not None and adapter.finished:
            return None
    elif fold.adapter is not adapter or fold.weight is not weight or fold.scale != layer.scaling[name]:
        return None
    if layer.lora_bias[name] or type(modules["lora_dropout"]._modules[name]) is not nn.Identity:
        return None
    if not getattr(layer, "cast_input_dtype_enabled", True):
        return None
    a, b = down._parameters["weight"], up._parameters["weight"]
    return cast(Tensor, _low_rank(x, weight, bias, a, b, layer.scaling[name]))


def _over_columns(layer: Any, fold: FoldedColumns, x: Tensor) -> Tensor | None:
    """The layer's own product, where the fold is the active adapter's and stands as it should. Where next to nothing
    is computed, what is asked here is what a step costs: nothing is asked twice, and no function called for it."""
    base = layer._modules["base_layer"]
    own = base._parameters
    weight = own.get("weight")
    active = layer._active_adapter
    if (
        (active != fold.active and active != fold.name)
        or weight is not fold.weight
        or layer.scaling[fold.name] != fold.scale
        or layer._disable_adapters
        or layer.merged_adapters
        or not layer.lean
        or x.dtype != weight.dtype
        or not _is_plain(base)
        or type(layer._modules["lora_dropout"]._modules[fold.name]) is not nn.Identity
        or _elsewhere()
    ):
        return None
    bias = own["bias"]
    b: Any = fold.up._parameters["weight"]
    written, version, where, _ = fold.written
    if b is not written or b._version != version or b.data_ptr() != where:
        fold.write()
    if not (b.requires_grad and torch.is_grad_enabled()):
        return F.linear(x, weight, bias)
    return cast(Tensor, _columns(x, weight, bias, b, fold))


def lean_beside(layer: Any, x: Tensor) -> Tensor | None:
    """The output of a layer whose one active adapter is a column adapter that can't stand in the weight (its precision
    would round the update away): beside it, in place. None where this is not for us to compute."""
    active = layer._active_adapter
    name = active if isinstance(active, str) else active[0] if len(active) == 1 else None
    adapter, base = layer.lora_variant.get(name), layer._modules["base_layer"]
    if (
        type(adapter) is not ColumnAdapter
        or layer._fold is not None
        or layer._disable_adapters
        or layer.merged_adapters
    ):
        return None
    if not _is_plain(base) or adapter.target.fused or _elsewhere() or x.dtype != base.weight.dtype:
        return None
    if type(layer.lora_dropout[name]) is not nn.Identity:
        return None
    return cast(Tensor, _beside(x, base.weight, base.bias, adapter.b, adapter))


class _ColumnLinear(torch.autograd.Function):
    """x (..., m) -> x W^T + bias, B already standing in W; grad_B = s grad_y^T x[..., cols], of which only x[..., cols]
    is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, b: Tensor, fold: FoldedColumns) -> Tensor:
        adapter = fold.adapter
        ctx.save_for_backward(adapter.group.gather(adapter, x), weight)
        ctx.fold = fold
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("a folded column method has no second derivative; attach it with fold='never'")
        rows, weight = ctx.saved_tensors
        fold = ctx.fold
        flat = grad_y.reshape(-1, grad_y.shape[-1])
        # First the small product: grad_y was just made and lies in the cache, which the large one fills with W.
        grad_b = gradient_of_b(flat, rows, fold.scale, fold.dtype, fold.parts)
        grad_x = torch.matmul(grad_y, weight) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, grad_b, None


class _ColumnsBeside(torch.autograd.Function):
    """x (..., m) -> x W^T + bias + sum over links of s x[..., cols] B^T; the active link's x[..., cols] is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, b: Tensor, adapter: ColumnAdapter) -> Tensor:
        y = F.linear(x, weight, bias)
        flat, inputs = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
        ctx.scale = adapter.layer.scaling[adapter.name]
        for columns, done in adapter.finished:
            flat.addmm_(inputs.index_select(1, columns), _factor(done, ctx.scale, y).T)
        taken = adapter.group.gather(adapter, x)
        origin = adapter._origin if adapter.holds_weights else None
        flat.addmm_(taken, _factor(b if origin is None else b - origin, ctx.scale, y).T)
        ctx.save_for_backward(taken, weight, b)
        ctx.origin, ctx.active, ctx.finished = origin, (adapter.columns, adapter.run), list(adapter.finished)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("a column method's node has no second derivative; attach it with fold='never'")
        rows, weight, b = ctx.saved_tensors
        flat = grad_y.reshape(-1, grad_y.shape[-1])
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.mm(flat, weight)
            columns, run = ctx.active
            factor = _factor(b if ctx.origin is None else b - ctx.origin, ctx.scale, flat)
            if run is not None:
                grad_x[:, run[0] : run[1]].addmm_(flat, factor)
            else:
                grad_x.index_add_(1, columns, torch.mm(flat, factor))
            for columns, done in ctx.finished:
                grad_x.index_add_(1, columns, torch.mm(flat, _factor(done, ctx.scale, flat)))
            grad_x = grad_x.view(*grad_y.shape[:-1], weight.shape[1])
        grad_b = gradient_of_b(flat, rows, ctx.scale, b.dtype) if ctx.needs_input_grad[3] else None
        return grad_x, None, None, grad_b, None


def _factor(update: Tensor, scale: float, like: Tensor) -> Tensor:
    """s times an update of columns, in the precision of `like`. Made again in the backward rather than kept."""
    return (update * scale).to(like.dtype)


class _LowRankLinear(torch.autograd.Function):
    """x (..., m) -> x W^T + bias + s (x A^T) B^T. x A^T (.., r) is kept, and x where A is trained."""

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
    def backward(ctx: Any, grad_y: Tensor) -> Any:
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
    """The same gradients of operations that autograd follows, for a second derivative."""
    if x is None:
        raise RuntimeError("a layer whose A is frozen keeps no input for a second derivative; attach with fold='never'")
    rows = x.reshape(-1, x.shape[-1]).to(a.dtype)
    grad_inner = ctx.scale * (wide @ b)
    grad_x = flat @ weight + (grad_inner @ a).to(flat.dtype)
    return grad_x.view(shape), None, None, grad_inner.T @ rows, ctx.scale * (wide.T @ (rows @ a.T)), None


# What `Function.apply` looks for in Python before each call, `_elsewhere` has looked for: a quarter of a node's cost.
_columns = super(torch.autograd.Function, _ColumnLinear).apply
_beside = super(torch.autograd.Function, _ColumnsBeside).apply
_low_rank = super(torch.autograd.Function, _LowRankLinear).apply


def _is_plain(base: Any) -> bool:
    """Whether calling the layer is F.linear with a frozen weight and nothing else."""
    if not _is_bare(base):
        return False
    own = base._parameters
    weight, bias = own["weight"], own["bias"]
    return type(weight) in _PLAIN and not weight.requires_grad and (bias is None or not bias.requires_grad)


def _is_bare(module: Any) -> bool:
    """A linear layer of torch's own without hooks."""
    if type(module) is not nn.Linear:
        return False
    held = module.__dict__
    return not (
        held["_forward_hooks"]
        or held["_forward_pre_hooks"]
        or held["_backward_hooks"]
        or held["_backward_pre_hooks"]
        or "forward" in held
    )


_PLAIN = (nn.Parameter, Tensor)
_autocast = torch._C._is_any_autocast_enabled
_transformed = torch._C._are_functorch_transforms_active
_traced = torch._C._get_tracing_state
_watched = module_hooks._has_any_global_hook


def _elsewhere() -> bool:
    """Whether autocast, a transform of `torch.func`, forward-mode derivatives, a tracer, or hooks on all modules want
    to see the operations of the layers inside."""
    return bool(_autocast() or _transformed() or forward_ad._current_level >= 0 or _watched() or _traced() is not None)


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode derivatives follow B: then it can't be written anywhere."""
    return bool(_transformed() or forward_ad._current_level >= 0)
