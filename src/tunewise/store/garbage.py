"""What may go from a runs folder, how much that is, and its removal. Finished runs stay, and so does any run that a
process has now.

Nothing is half removed: a folder is first renamed into `.trash/`, which is emptied after that (and by the next
cleaning, should this one be killed).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tunewise.errors import StoreError
from tunewise.store import locks
from tunewise.store.comparisons import comparisons, costs, tuning
from tunewise.store.files import is_disk_full
from tunewise.store.folders import RunStore
from tunewise.store.names import ASIDE, LOCKS, RECORD, RUN_ID
from tunewise.store.records import RunRecord

TRASH = ".trash"
STALE = 3600.0
"""Seconds after which a temporary file is nobody's any more, where no lock says so."""

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
    """The run whose lock is needed for its removal."""
    adapter_of: RunRecord | None = None
    """A tuning trial that is to stay without its adapter: its record no longer names those files."""


@dataclass(frozen=True)
class Wanted:
    """What to look for besides what nobody can want: each of these costs something to make again."""

    unfinished: bool = False
    """Unfinished runs that could be gone on with."""
    trials: bool = False
    """Adapters of the trials of learning-rate searches; their records and histories stay."""
    caches: bool = False
    """What measures keep of base models and gradients, though runs here may want it."""


def leftovers(store: RunStore, wanted: Wanted | None = None) -> list[Leftover]:
    """What may go, in the order of its place. Nothing of a run that is locked now is among it."""
    wanted = wanted or Wanted()
    found: dict[Path, Leftover] = {}
    records: dict[str, RunRecord] = {}
    known = True
    for run_id in store.ids():
        if store.is_locked(run_id):
            known = False
            continue
        try:
            record = store.record(run_id)
        except StoreError:  # for `verify` to judge
            known = False
            continue
        if record is not None:
            records[run_id] = record
            found.update((one.path, one) for one in _of_finished(store, record, wanted))
        else:
            known = False
            found.update((one.path, one) for one in _of_unfinished(store, run_id, wanted))
    if wanted.trials:
        found.update((one.path, one) for one in _adapters_of_trials(store, records))
    models = {record.spec.model.digest or "" for record in records.values()} if known else None
    others = [*_scratch_beside(store), *_costs(store), *_caches(store, models, wanted), *_leases(store)]
    found.update((one.path, one) for one in others)
    if (trash := store.root / TRASH).is_dir():
        found[trash] = Leftover(trash, "what an earlier cleaning had begun to remove", _size(trash))
    inner = [path for path in found if any(parent in found for parent in path.parents)]
    return [found[path] for path in sorted(found.keys() - set(inner))]


def remove(store: RunStore, what: Iterable[Leftover]) -> tuple[int, list[str]]:
    """Remove leftovers. Returns the bytes that are free now, and a sentence for each that had to stay: a run that has
    been started since, a file without permission."""
    freed, stayed = 0, []
    for one in sorted(what, key=lambda one: one.path.parent.name == LOCKS):  # last: removing from a run takes its lock
        try:
            with contextlib.ExitStack() as held:
                if one.run is not None:
                    held.enter_context(store.lock(one.run))
                    _check_unchanged(store, one)
                if one.path.parent.name == LOCKS:
                    if not locks.remove(one.path):
                        raise StoreError("a process has it now")
                else:
                    if one.adapter_of is not None:
                        _forget_adapter(store, one.adapter_of)
                    _discard(store, one.path)
            if one.run is not None:
                locks.remove(store.lock_file(one.run))
            freed += one.bytes
        except (OSError, StoreError) as error:
            said = error.strerror if isinstance(error, OSError) else error
            stayed.append(f"{one.path} stays: {said}")
    shutil.rmtree(store.root / TRASH, ignore_errors=True)
    return freed, stayed


def _check_unchanged(store: RunStore, one: Leftover) -> None:
    """An unfinished run may have come to its end between the look and the removal."""
    assert one.run is not None
    if one.path == store.folder(one.run) and (one.path / RECORD).exists():
        raise StoreError("the run has come to its end since")


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
        shutil.rmtree(path)  # no room for a folder to put it into; better half removed than in the way
    else:
        os.replace(path, place / path.name)


def _forget_adapter(store: RunStore, record: RunRecord) -> None:
    """From now on the record does not promise those files, so the trial counts as whole without them."""
    files = {name: value for name, value in record.files.items() if not name.startswith("adapter/")}
    store.write(record.model_copy(update={"files": files}))


def _of_finished(store: RunStore, record: RunRecord, wanted: Wanted) -> Iterator[Leftover]:
    """Checkpoints of a run that was killed between its record and its tidying (not those of one that is trained anew),
    temporary files, and a damaged record that has a successor."""
    folder = store.folder(record.id)
    written = (folder / RECORD).stat().st_mtime
    under_way = [path for name in _UNDER_WAY if (path := folder / name).exists()]
    why = "only needed while it was running"
    if record.status == "oom":  # goes on from there where there is more memory
        under_way, why = under_way if wanted.unfinished else [], "for going on with a run that ran out of memory"
    if all(path.stat().st_mtime <= written for path in under_way):
        for path in under_way:
            yield Leftover(path, why, _size(path), record.id)
    if (folder / ASIDE).exists():
        yield Leftover(folder / ASIDE, "a damaged record; the run was done again", _size(folder / ASIDE), record.id)
    yield from _scratch(folder, record.id)


def _of_unfinished(store: RunStore, run_id: str, wanted: Wanted) -> Iterator[Leftover]:
    folder = store.folder(run_id)
    if wanted.unfinished:
        yield Leftover(folder, "an unfinished run", _size(folder), run_id)
    elif not any(folder.glob("checkpoints/checkpoint-*")) and not (folder / ASIDE).exists():
        yield Leftover(folder, "an unfinished run without a checkpoint to go on from", _size(folder), run_id)
    else:
        yield from _scratch(folder, run_id)


def _scratch(folder: Path, run_id: str | None) -> Iterator[Leftover]:
    """Temporary files and folders; those of a run that nobody has are nobody's."""
    if not folder.is_dir():
        return
    for path in sorted(folder.rglob("*")):
        if not _SCRATCH.fullmatch(path.name) or (run_id is None and not _is_stale(path)):
            continue
        if ".old." in path.name and not (path.parent / path.name[1:].partition(".old.")[0]).exists():
            continue  # moved out of the way for what never came: the only one there is
        yield Leftover(path, "a temporary file of a process that was stopped", _size(path), run_id)


def _scratch_beside(store: RunStore) -> Iterator[Leftover]:
    folders = [*store.root.glob("compare-*"), store.root / "costs", store.root / "cache"]
    for path in sorted(store.root.glob(".*")) if store.root.is_dir() else []:
        if not _SCRATCH.fullmatch(path.name) or not _is_stale(path):
            continue
        run = path.name[1:17]
        if path.is_file():
            yield Leftover(path, "a temporary file of a process that was stopped", _size(path))
        elif RUN_ID.fullmatch(run) and not store.is_locked(run):
            yield Leftover(path, "a run that was on its way here when its process was stopped", _size(path), run)
    for folder in folders:
        yield from _scratch(folder, None)


def _costs(store: RunStore) -> Iterator[Leftover]:
    """Costs of comparisons that are no more: whose content none of them has beside its specification, and whose
    methods are not those of one that has no costs yet."""
    kept = [known for file in store.root.glob("compare-*/costs.json") if (known := costs(file))]
    waiting = [
        {method.label for method in spec.methods}
        for folder, spec in comparisons(store.root)
        if not (folder / "costs.json").exists()
    ]
    for file in sorted((store.root / "costs").glob("*.json")):
        found = costs(file)
        if found is None or found in kept or {r.method for r in found.rows if not r.reference_line} in waiting:
            continue
        if _is_stale(file):
            yield Leftover(file, "costs that no comparison here is about", _size(file))


def _caches(store: RunStore, models: set[str] | None, wanted: Wanted) -> Iterator[Leftover]:
    """What was kept of base models. Files named by the model they are of go where no run is of it; the rest is named
    by contents of matrices, so it goes where there are no runs at all, or on demand. `models` is None where not all
    runs are known."""
    cache = store.root / "cache"
    if not cache.is_dir():
        return
    if wanted.caches or (models is not None and not models):
        why = "kept of base models for measures" if wanted.caches else "kept for measures, and there are no runs"
        if wanted.caches or _is_stale(cache):
            yield Leftover(cache, f"{why}; made again when wanted", _size(cache))
    elif models is not None and "" not in models:
        for file in sorted([*cache.glob("behaviour-*"), *cache.glob("prefix-*")]):
            if file.name.split("-")[1] not in {digest[:16] for digest in models} and _is_stale(file):
                yield Leftover(file, "of a base model that no run here is of; made again when wanted", _size(file))


def _adapters_of_trials(store: RunStore, records: dict[str, RunRecord]) -> Iterator[Leftover]:
    trials: set[str] = set()
    wanted: set[str] = set()
    for folder, spec in comparisons(store.root):
        wanted |= {run.id for run in spec.runs()}
        if (search := tuning(folder)) is not None:
            trials |= {trial.run for row in search.methods for trial in row.trials}
    for run_id in sorted((trials - wanted) & records.keys()):
        adapter = store.folder(run_id) / "adapter"
        if adapter.exists():
            why = "the adapter of a trial for the learning rate"
            yield Leftover(adapter, why, _size(adapter), run_id, adapter_of=records[run_id])


def _leases(store: RunStore) -> Iterator[Leftover]:
    for file in sorted((store.root / LOCKS).glob("*")):
        if not locks.is_held(file):
            yield Leftover(file, "a lock that nobody holds", _size(file))


def _is_stale(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > STALE
    except FileNotFoundError:
        return False


def _size(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(_size(one) for one in path.iterdir())
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
