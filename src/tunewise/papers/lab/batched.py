"""Random streams, and many runs of an experiment as one batch.

A run is a function of tensors without a batch dimension. Its random numbers are drawn before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def generator(seed: int, *stream: int) -> torch.Generator:
    """A generator for one stream of one seed."""
    mixed = seed % 2**31
    for part in stream:
        mixed = (mixed * 1_000_003 + part + 0x9E3779B9) % 2**63
    return torch.Generator().manual_seed(mixed)


def normal(draw: torch.Generator, *shape: int) -> Tensor:
    """Independent N(0, 1) numbers, float64."""
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def batch(run: Callable[..., Any], *arguments: Tensor, chunk: int | None = None) -> Any:
    """Stacked results of `run` for every entry of the first dimension, at most `chunk` at a time."""
    return torch.func.vmap(run, chunk_size=chunk)(*arguments)
