"""Named random streams: every random choice has a name, and its numbers depend on seed and name alone.

So two layers of one shape never share columns by accident, and adding a layer does not change the others.
"""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator seeded by sha256 of the seed and the names: the same in every process and on every machine."""
    text = "\x1f".join([str(seed), *map(str, names)])
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator(device="cpu").manual_seed(number)
