"""The scores of no learning, for the test metrics of a run.

A model that can answer before it is trained scores alike at every seed and, since attaching leaves its outputs as they
are, with nearly every method: it is scored once for a runs folder, and the scores are kept in `cache/floors/`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch

from tunewise.catalog import get_method
from tunewise.errors import StoreError
from tunewise.spec import content_hash
from tunewise.store import locks
from tunewise.store.documents import read_document, write_document
from tunewise.store.environment import environment
from tunewise.store.names import LOCKS
from tunewise.store.records import Floor, FloorReport
from tunewise.training.context import RunContext
from tunewise.training.evaluation import Evaluation
from tunewise.training.events import Listener

Floors = dict[str, Floor]
"""By metric."""


def measure_floor(context: RunContext, score: Callable[[], tuple[Evaluation, str, list[str]]]) -> Floors:
    """The floor of each test metric; none for a trial, unless it is known without the model.

    Args:
        context: The run.
        score: Scores the run's model, which is untrained, on the test split; also returns the main metric, and those
            for which a lower value is better. Called on all ranks, or on none.
    """
    task, method = context.task, context.spec.method
    if not task.has_trained_head:
        return _of_constants(context)
    if context.is_trial:
        return {}
    if get_method(method.name).describe_start(method.rank):  # the method's own outputs, also different at each seed
        return _better_of(_of_constants(context), score)
    return _measure_once(context, lambda: _better_of(_of_constants(context), score))


def _of_constants(context: RunContext) -> Floors:
    scores = context.task.constant_scores(context.task.test)
    return {key: Floor(score=score, of="best constant prediction") for key, score in scores.items()}


def _better_of(constant: Floors, score: Callable[[], tuple[Evaluation, str, list[str]]]) -> Floors:
    """The better of constant predictions and of the untrained model."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):  # lm-evaluation-harness sets seeds, and training goes on with these draws
        test, _, lower_is_better = score()
    floors = dict(constant)
    for key, value in test.scores.metrics.items():
        sign = -1 if key in lower_is_better else 1
        if key not in floors or sign * value >= sign * floors[key].score:
            floors[key] = Floor(score=value, of="untrained model")
    return floors


def _measure_once(context: RunContext, measure: Callable[[], Floors]) -> Floors:
    """What is kept in the runs folder; else measured, while other processes that need the same wait."""
    versions, process_group, root = environment(), context.process_group, context.folder.parent
    key = content_hash([context.spec.untrained_id, versions.device, versions.tunewise, versions.versions])
    file, lock = root / "cache" / "floors" / f"{key}.json", root / LOCKS / f"floor-{key}"
    with contextlib.ExitStack() as stack:
        known = process_group.on_rank_zero(lambda: _read_or_lock(file, lock, stack, context.listener))
        if known is not None:
            return known
        floors = measure()
        process_group.on_rank_zero(lambda: write_document(file, FloorReport(floors=floors)))
    return floors


def _read_or_lock(file: Path, lock: Path, stack: contextlib.ExitStack, listener: Listener) -> Floors | None:
    """What is kept, or another process is about to write; None with the lock, where it is to be measured here."""
    while (known := _read(file)) is None:
        try:
            stack.enter_context(locks.hold(lock))
        except locks.RunLocked:
            listener.check()
        else:
            return _read(file)  # it may have been written just before the lock was released
    return known


def _read(file: Path) -> Floors | None:
    try:
        return read_document(file, FloorReport, "it is measured again").floors
    except (FileNotFoundError, StoreError):
        return None
