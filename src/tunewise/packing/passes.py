"""How many runs of a pack go through the backbone at a time."""

from __future__ import annotations

from collections.abc import Sequence

from tunewise.tasks.contract import Task

PASS = 2048
"""Tokens in one pass on a CPU. The matrix products fill a core long before; above, intermediate results leave its cache
and have their memory from the system anew each time, which costs more than what is saved (docs/performance.md)."""

CALLS = 48
"""Tokens that take a CPU as long as the calls of a pass do: a pass less is worth so much padding (a line through the
times of single steps of 32 to 1024 tokens, MiniLM's shape)."""

GAINS_BELOW = 512
"""Tokens in a run's step from which on a pack gains a tenth at most on a CPU (benchmarks/packed.py)."""


def tokens_of_a_step(task: Task, batch_size: int) -> int | None:
    """In one batch of a run, padding included; None where examples are no texts."""
    batch = task.collate(task.train[:batch_size])
    return batch["input_ids"].numel() if "input_ids" in batch else None


def passes(sizes: Sequence[tuple[int, int]], most: int, calls: int) -> list[list[int]]:
    """The runs of each pass, by their numbers in ascending order. `sizes`: each run's (examples, tokens an example).

    A pass is padded to its largest run and holds at most `most` tokens, or one run. Runs of like lengths go together,
    in the split that costs least: a pass costs its tokens, padding included, and `calls`.
    """
    by_length = sorted(range(len(sizes)), key=lambda k: (sizes[k][1], sizes[k][0]))
    best: list[tuple[int, int]] = [(0, 0)]  # of the first n runs: (least cost, where their last pass starts)
    for stop in range(1, len(sizes) + 1):
        costs = []
        for start in range(stop):
            rows, length = (max(sizes[k][i] for k in by_length[start:stop]) for i in (0, 1))
            tokens = (stop - start) * rows * length
            if tokens <= most or stop - start == 1:
                costs.append((best[start][0] + calls + tokens, start))
        best.append(min(costs))
    found, stop = [], len(sizes)
    while stop:
        start = best[stop][1]
        found.append(sorted(by_length[start:stop]))
        stop = start
    return found[::-1]
