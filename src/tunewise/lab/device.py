"""Where the batches run."""

from __future__ import annotations

import torch

from tunewise.errors import SpecError


def usable(name: str) -> str:
    """The device's name, once it has held a float64. Raises `SpecError` where it can't."""
    try:
        torch.zeros(1, dtype=torch.float64, device=name)
    except (RuntimeError, AssertionError, TypeError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise SpecError(f"--device {name!r} can't be used here ({first}); leave it out for the CPU") from None
    return name
