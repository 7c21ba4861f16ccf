"""How many runs of a pack go through the backbone at a time."""

from __future__ import annotations

from collections.abc import Sequence

from tunewise.tasks.contract import Task

PASS = 2048
"""Tokens in one pass on a CPU. The matrix products fill a core long before; above, intermediate results leave its cache
and have their memory from the system anew each time, which costs more than what is saved (docs/performance.md)."""

GAINS_BELOW = 512
"""Tokens in a run's step from which on a pack gains a tenth at most on a CPU (benchmarks/packed.py)."""


def tokens_of_a_step(task: Task, batch_size: int) -> int | None:
    """In one batch of a run, padding included; None where examples are no texts."""
    batch = task.collate(task.train[:batch_size])
    return batch["input_ids"].numel() if "input_ids" in batch else None


def passes(sizes: Sequence[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """[start, stop) of the runs of each pass, in order. `sizes`: each run's (examples, tokens an example); a pass is
    padded to its largest, and holds at most `most` tokens, or one run."""
    found: list[tuple[int, int]] = []
    start, rows, length = 0, 0, 0
    for k, (own_rows, own_length) in enumerate(sizes):
        rows, length = max(rows, own_rows), max(length, own_length)
        if k > start and (k + 1 - start) * rows * length > most:
            found.append((start, k))
            start, rows, length = k, own_rows, own_length
    return [*found, (start, len(sizes))] if sizes else []
