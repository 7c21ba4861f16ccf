"""The state of every global random generator, taken and put back: what makes runs that take turns draw as if alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Stream:
    """Where one run's random numbers stand: torch (CPU, and CUDA where it is in use), NumPy, Python."""

    def __init__(self) -> None:
        self.take()

    def take(self) -> None:
        """Remember the generators' present states."""
        self.cpu = torch.get_rng_state()
        self.cuda: Tensor | None = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        self.numpy: Any = np.random.get_state()
        self.python = random.getstate()

    def put(self) -> None:
        """Set the generators to what was remembered."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)
        np.random.set_state(self.numpy)
        random.setstate(self.python)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """torch draws from this stream within the block; the generators go on afterwards from where they were."""
        cpu = torch.get_rng_state()
        cuda = torch.cuda.get_rng_state() if self.cuda is not None else None
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)
        try:
            yield
        finally:
            self.cpu = torch.get_rng_state()
            torch.set_rng_state(cpu)
            if cuda is not None:
                self.cuda = torch.cuda.get_rng_state()
                torch.cuda.set_rng_state(cuda)
