"""A method on a model whose weights are sharded (`models.sharded`): what of it is made whole, and when."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from torch import nn

from tunewise.methods.attachment import attachment, layer_adapters
from tunewise.methods.columns import ColumnAdapter
from tunewise.methods.low_rank import LowRankAdapter
from tunewise.models.layers import Target
from tunewise.models.sharded import is_sharded, whole


def whole_for_files(model: nn.Module, *, here: bool = True) -> contextlib.AbstractContextManager[None]:
    """For a while all that a file of the model holds is whole in this process: what is trained, the adapters' factors,
    and the weights by which its base is recognised; everything where there is no adapter. With `here=False` this
    process only gives its pieces. All processes together; nothing to do in a model that is not sharded."""
    if not is_sharded(model):
        return contextlib.nullcontext()
    done = attachment(model)
    recognised = tuple(f"{target.name}.base_layer.weight" for target in recognised_by(done.targets))

    def wanted(name: str, parameter: nn.Parameter) -> bool:
        return not done.method.adapts or parameter.requires_grad or ".lora_" in name or name.endswith(recognised)

    return whole(model, wanted, here=here, write=False)


def recognised_by(targets: Sequence[Target]) -> list[Target]:
    """The layers whose weights' hash names a base model: up to four of those adapted."""
    return [*targets[:2], *targets[-2:]]


def stay_beside(model: nn.Module) -> None:
    """Let no adapter stand in a weight from now on: a weight that is put together from its pieces before each use would
    not have it."""
    for adapter in layer_adapters(model):
        if isinstance(adapter, ColumnAdapter | LowRankAdapter):
            adapter.release()
            adapter.fold_mode = "never"
