"""The state of every global random generator, taken and put back: what makes runs that take turns draw as if alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor


def global_generators() -> list[Generator]:
    """torch's own generators that a run draws from: the CPU's, and the current GPU's where CUDA is in use."""
    found = [torch.default_generator]
    if torch.cuda.is_initialized():
        found.append(torch.cuda.default_generators[torch.cuda.current_device()])
    return found


def states(generators: Sequence[Generator]) -> list[Tensor]:
    """Where these generators stand."""
    return [generator.get_state() for generator in generators]


class Stream:
    """Where one run's random numbers stand: torch's `generators` (the global ones unless given; the CPU's first),
    NumPy, Python."""

    def __init__(self, generators: Sequence[Generator] | None = None) -> None:
        self._given = generators
        self._own: list[tuple[Generator, Generator]] = []
        self.take()

    @property
    def cpu(self) -> Generator:
        """This stream's own CPU generator: what is drawn from it is drawn from the stream."""
        return self._own[0][1]

    def take(self) -> None:
        """Remember the generators' present states."""
        # Once more each time: CUDA may have come into use since.
        found = global_generators() if self._given is None else self._given
        if [one for one, _ in self._own] != list(found):
            self._own = [(one, one.clone_state()) for one in found]
        else:
            for one, own in self._own:
                own.set_state(one.get_state())
        self.numpy: Any = np.random.get_state()
        self.python = random.getstate()

    def put(self) -> None:
        """Set the generators to what was remembered."""
        for one, own in self._own:
            one.set_state(own.get_state())
        np.random.set_state(self.numpy)
        random.setstate(self.python)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """torch draws from this stream within the block; the generators go on afterwards from where they were."""
        before = [one.get_state() for one, _ in self._own]
        for one, own in self._own:
            one.set_state(own.get_state())
        try:
            yield
        finally:
            for (one, own), state in zip(self._own, before, strict=True):
                own.set_state(one.get_state())
                one.set_state(state)
