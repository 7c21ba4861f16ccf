"""Time of a step: CPU time of one thread on a CPU, wall time with the queue emptied on a device; interleaved."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunewise.measures.cost.probe import median_interval


@dataclass
class Line:
    """One way of training, ready to be stepped; `run` is the model, or the compiled one."""

    label: str
    model: nn.Module
    run: Any
    optimizer: torch.optim.Optimizer
    batch: Mapping[str, Tensor]

    @property
    def on_device(self) -> bool:
        return next(iter(self.batch.values())).is_cuda

    def gradients(self) -> None:
        """Forward and backward."""
        self.run(**self.batch).loss.backward()

    def update(self) -> None:
        """The optimizer's step, with whatever hangs on it."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        self.gradients()
        self.update()

    def timed(self) -> tuple[float, float]:
        """Seconds of forward and backward, and of the update."""
        start = self._now()
        self.gradients()
        middle = self._now()
        self.update()
        return middle - start, self._now() - middle

    def _now(self) -> float:
        if self.on_device:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


def clock_of(device: torch.device) -> str:
    """The clock in words."""
    if device.type == "cuda":
        return "wall time, the device's queue emptied before and after"
    return f"CPU time of the process, {torch.get_num_threads()} thread(s)"


def interleaved(lines: Sequence[Line], rounds: int, warm_up: int = 3, seed: int = 0) -> dict[str, list[list[float]]]:
    """{label: [[seconds of forward and backward, of the update] a round]}. In a round every line is stepped once, in
    an order drawn afresh, so that a slow spell of the machine falls on all of them."""
    for line in lines:
        for _ in range(warm_up):
            line.step()
    found: dict[str, list[list[float]]] = {line.label: [] for line in lines}
    order = random.Random(seed)
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for line in order.sample(list(lines), len(lines)):
                found[line.label].append(list(line.timed()))
            gc.collect()
    finally:
        gc.enable()
    return found


def ratios(times: Mapping[str, list[list[float]]], label: str, over: Sequence[str]) -> dict[str, float]:
    """Median over the rounds of a line's step over the mean of the lines `over` in the same round, with its 95 %
    interval."""
    below = [sum(sum(one) for one in found) / len(found) for found in zip(*(times[name] for name in over), strict=True)]
    pairs = zip(times[label], below, strict=True)
    median, low, high = median_interval([sum(one) / floor for one, floor in pairs])
    return {"median": median, "low": low, "high": high}
