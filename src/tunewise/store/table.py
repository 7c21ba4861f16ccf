"""One row a run, over a whole runs folder: thousands of runs in well under a second.

The folders are the truth. What is read from them is kept in an index (`table_index`), where each row has the stamp of
the `run.json` that it was read from: a row is used only while that file is the same one. Whether a run is being run
right now is never kept, but looked up each time. Torch is not imported, and neither is what reads records, where the
index knows all of them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewise.errors import StoreError
from tunewise.store import locks, table_index
from tunewise.store.names import LOCKS, RECORD, RUN_ID
from tunewise.store.table_index import Stamp

if TYPE_CHECKING:
    from tunewise.spec import RunSpec
    from tunewise.store.records import RunRecord

LIVE = ("running", "unfinished", "unreadable")
"""What a row's status can be besides those of a record: held by a process now; begun, and held by none; with a record
that can't be read."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run in one line; None for what is not known (yet) or means nothing to its method."""

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


def table(root: str | Path, *, keep: bool = True) -> list[RunRow]:
    """All runs of a runs folder, by the time they were started. Writes the index anew where something changed, unless
    `keep` is off or the folder can't be written to."""
    root = Path(root)
    stamps = dict(_stamps(root))
    known = table_index.read(root)
    rows: dict[str, RunRow] = {}
    fresh: set[str] = set()
    for run_id, stamp in stamps.items():
        if stamp is None:
            rows[run_id] = RunRow(run_id, "unfinished")
        elif run_id in known and known[run_id][0] == stamp:
            rows[run_id] = RunRow(**known[run_id][1])
        else:
            rows[run_id] = _read(root, run_id)
            fresh.add(run_id)
    sound = {i: (stamp, rows[i]) for i, stamp in stamps.items() if stamp and rows[i].status not in LIVE}
    if keep and (sound.keys() != known.keys() or not fresh.isdisjoint(sound)):
        with contextlib.suppress(OSError, StoreError):  # a folder that is only to be read, or a full disk
            table_index.write(root, {i: (stamp, as_dict(row)) for i, (stamp, row) in sound.items()})
    return sorted(_with_plans(root, _with_leases(root, rows)), key=lambda row: (row.started or "~", row.id))


def row_of(record: RunRecord) -> RunRow:
    """The row of a run with a record."""
    results, model = record.results, record.model
    return replace(
        _planned(record.id, record.status, record.spec),
        metric=results.metric if results else record.spec.metric,
        test=results.test.metrics.get(results.metric) if results else None,
        gap=results.gap if results else None,
        seconds=record.seconds,
        started=record.started,
        trainable=model.trainable if model else None,
        device=record.environment.device,
        problem=record.error,
    )


def as_dict(row: RunRow) -> dict[str, Any]:
    """The row's fields."""
    return {name: getattr(row, name) for name in RunRow.__slots__}


def _planned(run_id: str, status: str, spec: RunSpec) -> RunRow:
    from tunewise.catalog import get_method

    method = get_method(spec.method.name)
    rank = spec.method.rank if method.adapts else None
    return RunRow(
        id=run_id,
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


def _stamps(root: Path) -> Iterator[tuple[str, Stamp | None]]:
    """Of each run folder, the stamp of its record; None where it has none."""
    try:
        with os.scandir(root) as entries:
            names = [entry.name for entry in entries if RUN_ID.fullmatch(entry.name)]
    except OSError:
        return
    for name in names:
        try:
            found = os.stat(f"{root}/{name}/{RECORD}")  # noqa: PTH116 - thousands of them, and a Path is slow to make
        except FileNotFoundError:
            if (root / name).is_dir():
                yield name, None
        except OSError:  # no folder, or not ours to look into
            continue
        else:
            yield name, Stamp(found.st_mtime_ns, found.st_size, found.st_ino)


def _read(root: Path, run_id: str) -> RunRow:
    from tunewise.store.folders import RunStore

    try:
        record = RunStore(root).record(run_id)
    except StoreError as error:
        return RunRow(run_id, "unreadable", problem=str(error))
    if record is None:  # gone in between
        return RunRow(run_id, "unfinished")
    if record.id != run_id:
        return RunRow(run_id, "unreadable", problem=f"{root / run_id} holds the record of another run, {record.id}")
    return row_of(record)


def _with_leases(root: Path, rows: dict[str, RunRow]) -> dict[str, RunRow]:
    """Runs that a process has now are running, whatever an earlier record says."""
    try:
        with os.scandir(root / LOCKS) as entries:
            locked = [entry.name for entry in entries if entry.name in rows]
    except OSError:
        return rows
    for run_id in locked:
        with contextlib.suppress(OSError, StoreError):
            if locks.is_held(root / LOCKS / run_id):
                rows[run_id] = replace(rows[run_id], status="running")
    return rows


def _with_plans(root: Path, rows: dict[str, RunRow]) -> Iterable[RunRow]:
    """Of runs without a record, what was noted when they were begun, or what the comparisons say that they are."""
    unknown = {run_id for run_id, row in rows.items() if row.method is None and row.status != "unreadable"}
    if unknown:
        from tunewise.store.folders import RunStore

        store = RunStore(root)
        for run_id in sorted(unknown):
            if (spec := store.begun(run_id)) is not None:
                rows[run_id] = _planned(run_id, rows[run_id].status, spec)
                unknown.remove(run_id)
    if unknown:
        from tunewise.store.comparisons import comparisons

        for _, comparison in comparisons(root):
            for run in comparison.runs():
                if run.id in unknown:
                    rows[run.id] = _planned(run.id, rows[run.id].status, run)
    return rows.values()
