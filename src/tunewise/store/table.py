"""One row for each run of a runs folder, read from the folders: a thousand runs in half a second, without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunewise.errors import StoreError

if TYPE_CHECKING:
    from tunewise.spec import RunSpec
    from tunewise.store.folders import RunStore
    from tunewise.store.records import RunRecord

LIVE = ("running", "unfinished", "unreadable")
"""Statuses of rows besides those of records: locked by a process; begun, but not locked; a damaged record."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run in one line; None for what is not known (yet) or does not apply to its method."""

    id: str
    status: str
    method: str | None = None
    rank: int | None = None
    alpha: float | None = None
    links: int | None = None
    rate: float | None = None
    seed: int | None = None
    task: str | None = None
    model: str | None = None
    data: str | None = None
    metric: str | None = None
    test: float | None = None
    gap: float | None = None
    seconds: float | None = None
    started: str | None = None
    trainable: int | None = None
    device: str | None = None
    problem: str | None = None
    spec: str | None = None
    """The whole specification, as JSON."""

    def as_dict(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__slots__}


def table(root: str | Path) -> list[RunRow]:
    """All runs of a runs folder, by the time they were started."""
    from tunewise.store.folders import RunStore

    store = RunStore(root)
    rows = [_running(store, _read(store, run_id)) for run_id in store.ids()]
    return sorted(rows, key=lambda row: (row.started or "~", row.id))


def row_of(record: RunRecord) -> RunRow:
    """The row of a run with a record."""
    results, model = record.results, record.model
    return replace(
        _planned(record.status, record.spec),
        id=record.id,
        metric=results.metric if results else record.spec.metric,
        test=results.test.metrics.get(results.metric) if results else None,
        gap=results.gap if results else None,
        seconds=record.seconds,
        started=record.started,
        trainable=model.trainable if model else None,
        device=record.environment.device,
        problem=record.error,
    )


def _read(store: RunStore, run_id: str) -> RunRow:
    try:
        record = store.record(run_id)
    except StoreError as error:
        return RunRow(run_id, "unreadable", problem=str(error))
    if record is None:
        spec = store.begun(run_id)
        return RunRow(run_id, "unfinished") if spec is None else _planned("unfinished", spec)
    if record.id != run_id:
        problem = f"{store.folder(run_id)} holds the record of another run, {record.id}"
        return RunRow(run_id, "unreadable", problem=problem)
    return row_of(record)


def _running(store: RunStore, row: RunRow) -> RunRow:
    """A locked run is running, whatever an earlier record says."""
    return replace(row, status="running") if store.is_locked(row.id) else row


def _planned(status: str, spec: RunSpec) -> RunRow:
    from tunewise.catalog import get_method

    method = get_method(spec.method.name)
    rank = spec.method.rank if method.takes_rank else None
    return RunRow(
        id=spec.id,
        status=status,
        method=spec.method.name,
        rank=rank,
        alpha=None if rank is None or method.scaling == "one" else spec.method.alpha or 2.0 * rank,
        links=spec.links or (method.chain.links if method.chain else None),
        rate=spec.learning_rate,
        seed=spec.seed,
        task=spec.task,
        model=spec.model.path,
        data=spec.data.path,
        metric=spec.metric,
        spec=spec.model_dump_json(),
    )
