"""Whether the files of a runs folder are as they were written. Reads everything, changes nothing; no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel
from safetensors import SafetensorError, safe_open

from tunewise.errors import StoreError
from tunewise.spec import StudySpec
from tunewise.store.documents import OtherSchema, read_document
from tunewise.store.files import sha256
from tunewise.store.folders import RunStore
from tunewise.store.names import ASIDE, HISTORY, RECORD
from tunewise.store.records import CostReport, Measured, RunRecord, TuningReport

_BESIDE: dict[str, type[BaseModel]] = {
    "compare-*/compare.json": StudySpec,
    "compare-*/tuning.json": TuningReport,
    "compare-*/costs.json": CostReport,
    "costs/*.json": CostReport,
}


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a file."""

    run: str
    """Id of the run, or the name of another folder beside it."""
    file: str
    what: str
    repair: Literal["run", "file"] | None
    """What `repair` does: mark the run to be done again, or move this file aside; None: nothing."""

    def __str__(self) -> str:
        return f"{self.run}/{self.file}: {' '.join(self.what.split())}"


def faults_of_run(store: RunStore, run_id: str) -> list[Fault]:
    """What is wrong with a finished run: its record, files and measures."""
    folder = store.folder(run_id)
    try:
        record = store.record(run_id)
    except OtherSchema as error:
        return [Fault(run_id, RECORD, str(error).removeprefix(f"{folder / RECORD} "), None)]
    except StoreError as error:
        return [Fault(run_id, RECORD, str(error).removeprefix(f"{folder / RECORD} "), "run")]
    if record is None:
        return []
    faults = [*_identity(record, run_id), *_files(record, folder)]
    for file in sorted(folder.glob("measures/*.json")):
        if fault := _document_fault(file, Measured):
            faults.append(Fault(run_id, f"measures/{file.name}", fault, "file"))
    return faults


def faults_beside(root: Path) -> list[Fault]:
    """What is wrong with the documents of comparisons, and with the measured costs."""
    return [
        Fault(file.parent.name, file.name, fault, "file")
        for pattern, kind in _BESIDE.items()
        for file in sorted(root.glob(pattern))
        if (fault := _document_fault(file, kind))
    ]


def repair(store: RunStore, faults: Iterable[Fault]) -> list[str]:
    """Move aside the records of damaged runs, so that they are done again, and damaged files that are made again when
    needed. Locked runs are left alone. Returns what was done, in sentences."""
    faults = list(faults)
    done = []
    damaged = {fault.run for fault in faults if fault.repair == "run"}
    for run_id in sorted(damaged):
        try:
            with store.lock(run_id) as folder:
                (folder / RECORD).replace(folder / ASIDE)
        except (StoreError, OSError) as error:
            done.append(f"{run_id} is left as it is: {error}")
        else:
            done.append(f"{run_id} is marked to be done again: its record is now {ASIDE}")
    for fault in faults:
        if fault.repair == "file" and fault.run not in damaged:
            file = store.root / fault.run / fault.file
            file.replace(file.with_suffix(".damaged"))
            done.append(f"{fault.run}/{fault.file} is moved aside, and made again when needed")
    return done


def _identity(record: RunRecord, run_id: str) -> Iterator[Fault]:
    if record.id != run_id:
        yield Fault(run_id, RECORD, f"is the record of another run, {record.id}", "run")
    elif record.spec.id != record.id:
        reason = (
            f"its specification has the id {record.spec.id}: it was changed, or is of tunewise before this protocol"
        )
        yield Fault(run_id, RECORD, f"{reason} ({record.environment.tunewise}); the folder may be removed", None)


def _files(record: RunRecord, folder: Path) -> Iterator[Fault]:
    wrong = {name: fault for name in record.files if (fault := _file_fault(folder, name, record.files[name]))}
    if record.status == "done":
        if record.results is None:
            wrong[RECORD] = "the run is done and has no results"
        if HISTORY not in record.files:
            wrong[HISTORY] = "the run is done and its record names no history"
        for file in sorted((folder / "adapter").rglob("*.safetensors")):
            if (name := file.relative_to(folder).as_posix()) not in record.files:
                wrong[name] = "is not one of the files of the record"
    for name, fault in wrong.items():
        yield Fault(record.id, name, fault, "run")


def _file_fault(folder: Path, name: str, checksum: str) -> str | None:
    """What is wrong with a file; its content is checked, too: a run may have recorded a damaged one."""
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        return "lies outside the run's folder"
    try:
        differs, content = sha256(file) != checksum, _content_fault(file)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"can't be read ({error.strerror})"
    if differs:
        return "is not as it was written (its checksum differs" + (f"; {content})" if content else ")")
    return content


def _content_fault(file: Path) -> str | None:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="numpy") as opened:
                return None if opened.keys() else "holds no tensors"
        if file.suffix == ".json":
            json.loads(file.read_bytes())
    except SafetensorError as error:
        return f"is no safetensors file ({error})"
    except ValueError as error:
        return f"is no JSON ({error})"
    return _history_fault(file) if file.name == HISTORY else None


def _history_fault(file: Path) -> str | None:
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            entry = json.loads(line)
        except ValueError:
            return f"line {number} is no JSON"
        if not isinstance(entry, dict) or not {"kind", "step"} <= entry.keys():
            return f"line {number} has no kind or step"
    return None


def _document_fault(file: Path, kind: type[BaseModel]) -> str | None:
    try:
        read_document(file, kind, "`tunewise compare` makes it again")
    except FileNotFoundError:
        return None
    except StoreError as error:
        return str(error).removeprefix(f"{file} ")
    return None
