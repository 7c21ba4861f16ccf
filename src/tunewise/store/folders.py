"""Run folders, named by the hash of their spec; `run.json`, written last, says that a run is complete.

runs/<run id>/run.json          spec, versions, device, seed, results
runs/<run id>/spec.json         the specification, until that is written
runs/<run id>/history.jsonl     one line per step and per epoch
runs/<run id>/adapter/          the selected epoch, as any LoRA reader loads it
runs/<run id>/predictions.npz   test logits and labels, losses of the gap's training examples
runs/<run id>/predictions.jsonl  where answers are generated: prompt, reference, prediction and scores of each
runs/<run id>/checkpoints/      while it is running, to continue after a stop
runs/.locks/<run id>           locked by the process that has the run
runs/cache/                     what several runs need: floors, and intermediate results of measures
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path

from tunewise.errors import SpecError, StoreError
from tunewise.spec import RunSpec
from tunewise.store import locks
from tunewise.store.documents import read_document, write_document
from tunewise.store.environment import environment
from tunewise.store.files import sha256, write_atomically
from tunewise.store.names import ANSWERS, HISTORY, LOCKS, PREDICTIONS, RECORD, RUN_ID, SPEC, TRACEBACK
from tunewise.store.records import RunRecord


class RunStore:
    """The folder `runs/` and what is in it."""

    def __init__(self, root: str | Path) -> None:
        """Raises `SpecError` where the path is a file or lies below one."""
        self.root = Path(root)
        file = next((path for path in (self.root, *self.root.parents) if path.is_file()), None)
        if file is not None:
            raise SpecError(f"{file} is a file, and runs go into a folder; choose another (--out)")

    def folder(self, run_id: str) -> Path:
        """The folder of a run. Raises `StoreError` for a name that is no run id (it could leave the runs folder)."""
        if not RUN_ID.fullmatch(run_id):
            raise StoreError(f"{run_id!r} is no run id (16 hex digits)")
        return self.root / run_id

    def record(self, run_id: str) -> RunRecord | None:
        """The record of a run; None where it has none yet. Raises `StoreError` for a damaged one."""
        try:
            return read_document(
                self.folder(run_id) / RECORD,
                RunRecord,
                "remove that folder, or `tunewise runs verify --fix`, to run it again",
            )
        except FileNotFoundError:
            return None

    def finished(self, run_id: str) -> RunRecord | None:
        """The record of a run that is not to be done again: it is done or diverged, and its files are intact."""
        record = self.record(run_id)
        if record is None or record.status not in ("done", "diverged") or not self.intact(record):
            return None
        return record

    def intact(self, record: RunRecord) -> bool:
        """Whether the files of a run are as they were written."""
        folder = self.folder(record.id)
        return all((folder / n).is_file() and sha256(folder / n) == value for n, value in record.files.items())

    def write(self, record: RunRecord) -> None:
        """Write `run.json`, completely or not at all."""
        write_document(self.folder(record.id) / RECORD, record)

    def write_failed(
        self, spec: RunSpec, error: BaseException, started: datetime.datetime, seconds: float
    ) -> RunRecord:
        """Record that a run failed, with the traceback beside it; not while another process has the run."""
        message = " ".join(str(error).split()) or type(error).__name__
        record = RunRecord(
            id=spec.id,
            status="failed",
            spec=spec,
            environment=environment(),
            started=started.isoformat(timespec="seconds"),
            seconds=seconds,
            error=message if len(message) <= 300 else message[:299] + "…",
        )
        with contextlib.suppress(locks.RunLocked), self.lock(spec.id) as folder:
            write_atomically(folder / TRACEBACK, "".join(traceback.format_exception(error)))
            self.write(record)
        return record

    def begin(self, spec: RunSpec) -> None:
        """Note the specification of a run that has no record yet, for listing."""
        write_atomically(self.folder(spec.id) / SPEC, spec.model_dump_json(indent=1) + "\n")

    def begun(self, run_id: str) -> RunSpec | None:
        """The specification that `begin` noted; None where it can't be read."""
        try:
            spec = RunSpec.model_validate_json((self.folder(run_id) / SPEC).read_bytes())
        except (OSError, ValueError, SpecError):  # pydantic's own errors are ValueErrors
            return None
        return spec if spec.id == run_id else None

    def records(self) -> list[RunRecord]:
        """All records in the store, by id."""
        return [record for run_id in self.ids() if (record := self.record(run_id))]

    def checksums(self, run_id: str) -> dict[str, str]:
        """sha256 of the files of a finished run, by their names relative to its folder."""
        folder = self.folder(run_id)
        kept = [
            folder / HISTORY,
            folder / PREDICTIONS,
            folder / ANSWERS,
            *sorted((folder / "adapter").rglob("*")),
        ]
        return {f.relative_to(folder).as_posix(): sha256(f) for f in kept if f.is_file()}

    def tidy(self, run_id: str, *, keep_checkpoints: bool = False) -> None:
        """Remove what is only needed while running, but with `keep_checkpoints` not what it can continue from."""
        folder = self.folder(run_id)
        for name in () if keep_checkpoints else ("checkpoints", "selected"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in (SPEC, TRACEBACK) if keep_checkpoints else ("selected.json", SPEC, TRACEBACK):
            (folder / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self, run_id: str) -> Iterator[Path]:
        """The folder of a run, for this process alone until the end of the block. Raises `RunLocked`."""
        folder = self.folder(run_id)
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locks.hold(self.lock_file(run_id)))
            except locks.RunLocked as error:
                raise locks.RunLocked(f"run {run_id} is being run by {error}; wait for it, or stop it") from None
            folder.mkdir(exist_ok=True)  # garbage collection may have removed it in between
            yield folder

    def lock_file(self, run_id: str) -> Path:
        """The lock file of a run; absent for a run that was never begun here."""
        return self.root / LOCKS / run_id

    def is_locked(self, run_id: str) -> bool:
        """Whether a process has the run now."""
        return locks.is_held(self.lock_file(run_id))

    def ids(self) -> list[str]:
        """Ids of all run folders, finished or not, in order."""
        try:
            return sorted(
                entry.name for entry in os.scandir(self.root) if RUN_ID.fullmatch(entry.name) and entry.is_dir()
            )
        except FileNotFoundError:
            return []
