"""One row for each run of a runs folder: thousands of runs in well under a second, without torch.

The folders are the truth. `.table.json` keeps the rows that were read from them, each with the stamp of its `run.json`:
a row is used only while that file is the same. The index is replaced in one step and ignored where it is damaged; it
may be deleted at any time. Whether a run is running is looked up each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tunewise.errors import StoreError
from tunewise.store import locks
from tunewise.store.files import write_atomically
from tunewise.store.names import LOCKS, RECORD, RUN_ID

if TYPE_CHECKING:
    from tunewise.spec import RunSpec
    from tunewise.store.records import RunRecord

INDEX = ".table.json"
VERSION = b"2"
"""Raised when the same record would give another row."""
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

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class Stamp(NamedTuple):
    """Distinguishes a file from a later one of its name."""

    mtime_ns: int
    size: int
    inode: int


def table(root: str | Path) -> list[RunRow]:
    """All runs of a runs folder, by the time they were started."""
    root = Path(root)
    stamps = dict(_stamps(root))
    indexed = read_index(root)
    rows: dict[str, RunRow] = {}
    for run_id, stamp in stamps.items():
        if stamp is None:
            rows[run_id] = RunRow(run_id, "unfinished")
        elif run_id in indexed and indexed[run_id][0] == stamp:
            rows[run_id] = indexed[run_id][1]
        else:
            rows[run_id] = _read(root, run_id)
    readable = {i: (stamp, rows[i]) for i, stamp in stamps.items() if stamp and rows[i].status not in LIVE}
    if readable != indexed:
        with contextlib.suppress(OSError, StoreError):  # a read-only folder, or a full disk
            _write_index(root, readable)
    _mark_running(root, rows)
    _add_plans(root, rows)
    return sorted(rows.values(), key=lambda row: (row.started or "~", row.id))


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


def read_index(root: Path) -> dict[str, tuple[Stamp, RunRow]]:
    """Stamp and row by run id; empty where there is no index that can be trusted."""
    try:
        digest, _, content = (root / INDEX).read_bytes().partition(b"\n")
        if digest != _digest(content):
            return {}
        return {row["id"]: (Stamp(*stamp), RunRow(**row)) for stamp, row in json.loads(content)}
    except (OSError, ValueError):
        return {}


def _write_index(root: Path, rows: dict[str, tuple[Stamp, RunRow]]) -> None:
    content = json.dumps([[stamp, row.as_dict()] for stamp, row in rows.values()]).encode()
    write_atomically(root / INDEX, _digest(content) + b"\n" + content)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(VERSION + content).hexdigest().encode()


def _stamps(root: Path) -> Iterator[tuple[str, Stamp | None]]:
    """The stamp of the record of each run folder; None where it has none."""
    try:
        with os.scandir(root) as entries:
            names = [entry.name for entry in entries if RUN_ID.fullmatch(entry.name)]
    except OSError:
        return
    for name in names:
        try:
            status = os.stat(f"{root}/{name}/{RECORD}")  # noqa: PTH116 - thousands of them, and a Path is slow to make
        except FileNotFoundError:
            if (root / name).is_dir():
                yield name, None
        except OSError:  # not a folder, or without permission
            continue
        else:
            yield name, Stamp(status.st_mtime_ns, status.st_size, status.st_ino)


def _read(root: Path, run_id: str) -> RunRow:
    from tunewise.store.folders import RunStore

    try:
        record = RunStore(root).record(run_id)
    except StoreError as error:
        return RunRow(run_id, "unreadable", problem=str(error))
    if record is None:  # removed in the meantime
        return RunRow(run_id, "unfinished")
    if record.id != run_id:
        return RunRow(run_id, "unreadable", problem=f"{root / run_id} holds the record of another run, {record.id}")
    return row_of(record)


def _mark_running(root: Path, rows: dict[str, RunRow]) -> None:
    """Locked runs are running, whatever an earlier record says."""
    with contextlib.suppress(OSError), os.scandir(root / LOCKS) as entries:
        for run_id in [entry.name for entry in entries if entry.name in rows]:
            if locks.is_held(root / LOCKS / run_id):
                rows[run_id] = replace(rows[run_id], status="running")


def _add_plans(root: Path, rows: dict[str, RunRow]) -> None:
    """For runs without a record, what was noted when they were begun."""
    unknown = [run_id for run_id, row in rows.items() if row.method is None and row.status != "unreadable"]
    if unknown:
        from tunewise.store.folders import RunStore

        store = RunStore(root)
        for run_id in unknown:
            if (spec := store.begun(run_id)) is not None:
                rows[run_id] = _planned(rows[run_id].status, spec)


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
