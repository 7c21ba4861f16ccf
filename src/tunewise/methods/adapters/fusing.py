"""When an adapted linear layer may be computed as one autograd node, without PEFT's forward of modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as module_hooks

_PLAIN = (nn.Parameter, Tensor)
_autocast = torch._C._is_any_autocast_enabled
_transformed = torch._C._are_functorch_transforms_active
_traced = torch._C._get_tracing_state
_watched = module_hooks._has_any_global_hook


def fast_apply(function: type[torch.autograd.Function]) -> Any:
    """`function.apply` without torch's checks in Python, which `is_observed` covers: a quarter of a node's cost."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]


def sole_active_adapter(layer: Any) -> str | None:
    """The name of PEFT's active adapter; None where several are active."""
    active = layer._active_adapter
    if isinstance(active, str):
        return active
    return active[0] if len(active) == 1 else None


def is_plain(base: Any) -> bool:
    """Whether calling the layer is F.linear with a frozen weight and nothing else."""
    if not is_bare(base):
        return False
    own = base._parameters
    weight, bias = own["weight"], own["bias"]
    return type(weight) in _PLAIN and not weight.requires_grad and (bias is None or not bias.requires_grad)


def is_bare(module: object) -> bool:
    """Whether it is one of torch's own linear layers, without hooks."""
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


def is_observed() -> bool:
    """Whether autocast, `torch.func`, a tracer or global hooks must see the operations inside layers."""
    return bool(_autocast() or _transformed() or forward_ad._current_level >= 0 or _watched() or _traced() is not None)


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode derivatives follow B: B can't be written into W then."""
    return bool(_transformed() or forward_ad._current_level >= 0)
