"""The state of an optimizer over sharded parameters, in files that know nothing of shards: those of one process.

A file written by several processes is read by one, and the other way round.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tunewise.models.sharded import gathered, is_shard, piece_like


@contextlib.contextmanager
def whole_state(optimizer: torch.optim.Optimizer, *, here: bool) -> Iterator[None]:
    """For a while the optimizer's state is whole, on the CPU, where it is `here`; another process only gives its
    pieces. All processes together."""
    pieces = {parameter: dict(state) for parameter, state in optimizer.state.items()}
    for parameter, state in pieces.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and is_shard(value):
                values = gathered(value)
                optimizer.state[parameter][key] = values.cpu() if here else value
    try:
        yield
    finally:
        for parameter, state in pieces.items():
            optimizer.state[parameter].update(state)


def load_in_pieces(optimizer: torch.optim.Optimizer) -> None:
    """From now on `optimizer.load_state_dict` takes a whole state and keeps this process's pieces of it."""
    optimizer.register_load_state_dict_pre_hook(_cut)


def _cut(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    ours = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    state = {
        number: {
            key: piece_like(value, parameter) if isinstance(value, Tensor) and value.shape == parameter.shape else value
            for key, value in saved["state"].get(number, {}).items()
        }
        for number, parameter in zip(numbers, ours, strict=True)
    }
    return {**saved, "state": state}
