"""Writing trained columns into W after every optimizer step, by torch's global optimizer-step hook.

Fused optimizers do not move version counters; a counter that did move (a load) is noticed at the next forward.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from operator import is_

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from tunewise.errors import SpecError
from tunewise.methods.adapters.base import LIVE_ADAPTERS, Adapter, layer_adapters
from tunewise.methods.adapters.fold import Fold, WriteBack

_PLANS: weakref.WeakKeyDictionary[torch.optim.Optimizer, tuple[list[Tensor], WriteBack]] = weakref.WeakKeyDictionary()
"""What the steps of each optimizer change in weights; forgotten when any layer is folded or unfolded."""


def refold(model: nn.Module) -> None:
    """Write the present values of all folded columns into their weights.

    Needed only after an update that neither an optimizer made nor torch counts (a write into `.data`), and in a
    compiled model after any update that no optimizer made.

    Args:
        model: a model that `tunewise.attach` returned; nothing happens where no column method is folded.

    Example:
        >>> import torch, tunewise
        >>> model = tunewise.attach(torch.nn.Sequential(torch.nn.Linear(8, 4)), "cla", rank=2, targets=["0"])
        >>> for parameter in model.parameters():
        ...     if parameter.requires_grad:
        ...         _ = parameter.data.add_(1.0)
        >>> tunewise.refold(model)
    """
    WriteBack(_folds(layer_adapters(model))).run()


def forget_plans() -> None:
    """Some layer was folded or unfolded."""
    _PLANS.clear()


def _folds(adapters: Iterable[Adapter]) -> list[Fold]:
    """The folds of these adapters that must follow updates."""
    folds = []
    for adapter in adapters:
        fold = getattr(adapter.layer, "_fold", None)
        if fold is not None and fold.follows_updates and fold.name == adapter.name:
            if isinstance(adapter.b, DTensor):
                raise SpecError("columns can't be folded into weights that FSDP2 shards; use attach(..., fold='never')")
            folds.append(fold)
    return folds


def _after_optimizer_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
    stepped = [p for group in optimizer.param_groups for p in group["params"]]
    plan = _PLANS.get(optimizer)
    if plan is None or len(plan[0]) != len(stepped) or not all(map(is_, plan[0], stepped)) or not plan[1].fits():
        ids = set(map(id, stepped))
        folds = _folds([a for a in LIVE_ADAPTERS if a.folds_active_link and id(a.b) in ids])
        plan = _PLANS[optimizer] = (stepped, WriteBack(folds))
    plan[1].run()


register_optimizer_step_post_hook(_after_optimizer_step)
