"""Many runs of one experiment as one batch (`torch.func.vmap`), and what that gains over a loop.

A run is a function of tensors without a batch dimension; its random numbers are drawn before, outside, so that the
batch and the loop compute the same thing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tunewise.advise.statistics import mean_interval
from tunewise.papers.lab.contract import Speedup

Run = Callable[..., Any]


def generator(seed: int, *stream: int) -> torch.Generator:
    """A generator for one stream of one seed; draws are on the CPU in float64, so that devices agree."""
    mixed = seed % 2**31
    for part in stream:
        mixed = (mixed * 1_000_003 + part + 0x9E3779B9) % 2**63
    return torch.Generator().manual_seed(mixed)


def normal(draw: torch.Generator, *shape: int, device: str = "cpu") -> Tensor:
    """Independent N(0, 1), float64."""
    return torch.randn(*shape, generator=draw, dtype=torch.float64).to(device)


def batch(run: Run, *arguments: Tensor, chunk: int | None = None) -> Any:
    """`run` on every entry of the first dimension of all arguments at once; results are stacked.

    `chunk` runs at a time where memory needs it.
    """
    return torch.func.vmap(run, chunk_size=chunk)(*arguments)


def loop(run: Run, *arguments: Tensor) -> Any:
    """The same, one run after another: the reference."""
    results = [run(*(a[i] for a in arguments)) for i in range(len(arguments[0]))]
    return tree_map(lambda *parts: torch.stack(parts), *results)


def speedup(
    what: str, run: Run, *arguments: Tensor, looped: int = 8, rounds: int = 5, chunk: int | None = None
) -> Speedup:
    """Time of a run in the loop over its time in the batch: geometric mean of `rounds` ratios, with a t interval.

    Each round times the batch and a loop over `looped` of its runs, now the one first and now the other, so that
    what else the machine does falls on both. Each is warmed up before, and repeated within a round for as long as
    a clock needs (`_ENOUGH` seconds).
    """
    count = len(arguments[0])
    looped = min(looped, count)
    some = [a[:looped] for a in arguments]
    work: dict[str, tuple[Callable[[], Any], int]] = {
        "batch": (lambda: batch(run, *arguments, chunk=chunk), count),
        "loop": (lambda: loop(run, *some), looped),
    }
    times = {}
    for kind, (once, _) in work.items():
        _seconds(once, arguments[0])
        times[kind] = math.ceil(_ENOUGH / _seconds(once, arguments[0]))
    ratios = []
    for turn in range(rounds):
        spent = {}
        for kind in sorted(work, reverse=bool(turn % 2)):
            once, runs = work[kind]
            spent[kind] = _seconds(once, arguments[0], times[kind]) / (runs * times[kind])
        ratios.append(math.log(spent["loop"] / spent["batch"]))
    found = mean_interval(ratios)
    low, high = (math.nan if end is None else math.exp(end) for end in (found.low, found.high))
    return Speedup(what, math.exp(found.mean), low, high, batch=count, looped=looped, rounds=rounds)


_ENOUGH = 0.03


def _seconds(work: Callable[[], Any], sample: Tensor, times: int = 1) -> float:
    _wait(sample)
    start = time.perf_counter()
    for _ in range(times):
        work()
    _wait(sample)
    return time.perf_counter() - start


def _wait(sample: Tensor) -> None:
    if sample.is_cuda:
        torch.cuda.synchronize(sample.device)
