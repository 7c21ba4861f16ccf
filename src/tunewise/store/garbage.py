"""What may be removed from a runs folder, and its removal. Finished and running runs stay.

Nothing is half removed: a folder is first renamed into `.trash/`, which is emptied after that, by this cleaning or by
the next one.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tunewise.errors import StoreError
from tunewise.store.files import disk_size, is_disk_full
from tunewise.store.folders import RunStore
from tunewise.store.names import ASIDE, RECORD
from tunewise.store.records import RunRecord

TRASH = ".trash"
STALE = 3600.0
"""Seconds after which a temporary file outside of run folders belongs to no process any more."""

# `.NAME.xxxxxxxx`, as tempfile makes them beside what they become; and `NAME.123.part` of the caches.
_SCRATCH = re.compile(r"\..+\.[a-z0-9_]{8}|.+\.part")
_UNDER_WAY = ("checkpoints", "selected", "selected.json")


@dataclass(frozen=True)
class Leftover:
    """Something that may go."""

    path: Path
    why: str
    bytes: int
    run: str | None = None
    """The run that has to be locked for the removal."""


def leftovers(store: RunStore, *, unfinished: bool = False, caches: bool = False) -> list[Leftover]:
    """What may go, by path. Nothing of a run that is locked now is included.

    The options add what costs something to make again: unfinished runs that could continue from a checkpoint, and
    what is cached of base models.
    """
    by_path: dict[Path, Leftover] = {}
    for run_id in store.ids():
        if store.is_locked(run_id):
            continue
        try:
            record = store.record(run_id)
        except StoreError:  # left to `verify`
            continue
        of_run = (
            _of_unfinished(store, run_id, unfinished) if record is None else _of_finished(store, record, unfinished)
        )
        by_path.update((leftover.path, leftover) for leftover in of_run)
    if caches and (cache := store.root / "cache").is_dir():
        by_path[cache] = Leftover(cache, "cached of base models; made again when needed", disk_size(cache))
    for folder in [*store.root.glob("compare-*"), store.root / "costs", store.root / "cache"]:
        by_path.update((leftover.path, leftover) for leftover in _scratch(folder, None))
    if (trash := store.root / TRASH).is_dir():
        by_path[trash] = Leftover(trash, "an earlier cleaning had begun to remove it", disk_size(trash))
    inner = [path for path in by_path if any(parent in by_path for parent in path.parents)]
    return [by_path[path] for path in sorted(by_path.keys() - set(inner))]


def remove(store: RunStore, what: Iterable[Leftover]) -> tuple[int, list[str]]:
    """Remove leftovers. Returns the bytes that were freed, and a sentence for each one that had to stay: a run that
    was started in the meantime, a file without permission."""
    freed, stayed = 0, []
    for leftover in what:
        try:
            with contextlib.ExitStack() as stack:
                if leftover.run is not None:
                    folder = stack.enter_context(store.lock(leftover.run))
                    if leftover.path == folder and (folder / RECORD).exists():
                        raise StoreError("the run has come to its end since")
                _discard(store, leftover.path)
            freed += leftover.bytes
        except (OSError, StoreError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            stayed.append(f"{leftover.path} stays: {reason}")
    shutil.rmtree(store.root / TRASH, ignore_errors=True)
    return freed, stayed


def _discard(store: RunStore, path: Path) -> None:
    if path.name == TRASH:
        return  # emptied at the end
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    trash = store.root / TRASH
    try:
        trash.mkdir(exist_ok=True)
        place = Path(tempfile.mkdtemp(dir=trash))
    except OSError as error:
        if not is_disk_full(error):
            raise
        shutil.rmtree(path)  # no room to rename it first
    else:
        path.replace(place / path.name)


def _of_finished(store: RunStore, record: RunRecord, unfinished: bool) -> Iterator[Leftover]:
    """Checkpoints that are older than the record, temporary files, and a damaged record that was replaced."""
    folder = store.folder(record.id)
    written = (folder / RECORD).stat().st_mtime
    under_way = [path for name in _UNDER_WAY if (path := folder / name).exists()]
    why = "only needed while it was running"
    if record.status == "oom":  # it can continue where there is more memory
        under_way, why = under_way if unfinished else [], "to continue a run that ran out of memory"
    if all(path.stat().st_mtime <= written for path in under_way):
        for path in under_way:
            yield Leftover(path, why, disk_size(path), record.id)
    if (folder / ASIDE).exists():
        yield Leftover(folder / ASIDE, "a damaged record; the run was done again", disk_size(folder / ASIDE), record.id)
    yield from _scratch(folder, record.id)


def _of_unfinished(store: RunStore, run_id: str, unfinished: bool) -> Iterator[Leftover]:
    folder = store.folder(run_id)
    if unfinished:
        yield Leftover(folder, "an unfinished run", disk_size(folder), run_id)
    elif not any(folder.glob("checkpoints/checkpoint-*")) and not (folder / ASIDE).exists():
        yield Leftover(folder, "an unfinished run without a checkpoint to continue from", disk_size(folder), run_id)
    else:
        yield from _scratch(folder, run_id)


def _scratch(folder: Path, run_id: str | None) -> Iterator[Leftover]:
    """Temporary files and folders; those of a run that no process has belong to nobody."""
    if not folder.is_dir():
        return
    for path in sorted(folder.rglob("*")):
        if not _SCRATCH.fullmatch(path.name) or (run_id is None and not _is_stale(path)):
            continue
        if ".old." in path.name and not (path.parent / path.name[1:].partition(".old.")[0]).exists():
            continue  # moved out of the way for a file that was never written: the only copy
        yield Leftover(path, "a temporary file of a process that was stopped", disk_size(path), run_id)


def _is_stale(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > STALE
    except FileNotFoundError:
        return False
