"""Whether what lies in a runs folder is what was written there. Reads everything, changes nothing; no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from safetensors import SafetensorError, safe_open

from tunewise.errors import StoreError
from tunewise.spec import StudySpec
from tunewise.store.comparisons import comparisons
from tunewise.store.documents import OtherSchema, read_document
from tunewise.store.files import sha256
from tunewise.store.folders import RunStore
from tunewise.store.names import ASIDE, RECORD
from tunewise.store.records import CostReport, Measured, RunRecord, TuningReport

HISTORY = "history.jsonl"
TRAJECTORY = "trajectory/trajectory.json"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong. `mends` says what `mend` does about it."""

    run: str
    """Id of the run, or the name of a comparison's folder, or `costs`."""
    file: str
    what: str
    mends: Literal["run", "file"] | None
    """The run is marked to be done again; this file alone is moved aside, as it is made again when it is wanted; or
    nothing can be done here."""

    def __str__(self) -> str:
        return f"{self.run}/{self.file}: {' '.join(self.what.split())}"


def faults_of_run(store: RunStore, run_id: str) -> list[Fault]:
    """What is wrong with a run: its record, id and checksums, its history, adapter, measures and trajectory. A run that
    has not come to its end has no faults."""
    try:
        record = store.record(run_id)
    except StoreError as error:
        said = str(error).removeprefix(f"{store.folder(run_id) / RECORD} ")
        return [Fault(run_id, RECORD, said, None if isinstance(error, OtherSchema) else "run")]
    if record is None:
        return []
    folder = store.folder(run_id)
    return [*_identity(record, run_id), *_files(record, folder), *_measures(run_id, folder), *_path(run_id, folder)]


def faults_beside(root: Path) -> list[Fault]:
    """What is wrong with the comparisons in a runs folder, and with the costs that were measured."""
    shapes: dict[str, type[BaseModel]] = {
        "compare-*/compare.json": StudySpec,
        "compare-*/tuning.json": TuningReport,
        "compare-*/costs.json": CostReport,
        "costs/*.json": CostReport,
    }
    found = []
    for pattern, kind in shapes.items():
        for file in sorted(root.glob(pattern)):
            if said := _unreadable(file, kind, "`tunewise compare` makes it again"):
                found.append(Fault(file.parent.name, file.name, said, "file"))
    for folder, spec in comparisons(root):
        if folder.name != f"compare-{spec.id}":
            found.append(Fault(folder.name, "compare.json", f"its runs are those of compare-{spec.id}", None))
    return found


def mend(store: RunStore, faults: Iterable[Fault]) -> list[str]:
    """Marks damaged runs to be done again, by moving their records aside, and moves damaged files aside that are made
    again when they are wanted; a run that a process has now is left alone. Returns what was done, in sentences."""
    done = []
    broken = {fault.run for fault in faults if fault.mends == "run"}
    for run_id in sorted(broken):
        try:
            with store.lock(run_id) as folder:
                (folder / RECORD).replace(folder / ASIDE)
        except (StoreError, OSError) as error:
            done.append(f"{run_id} is left as it is: {error}")
        else:
            done.append(f"{run_id} is marked to be done again: its record is now {ASIDE}")
    for fault in faults:
        if fault.mends == "file" and fault.run not in broken:
            file = store.root / fault.run / fault.file
            file.replace(file.with_suffix(".damaged"))
            done.append(f"{fault.run}/{fault.file} is moved aside, and made again when it is wanted")
    return done


def _identity(record: RunRecord, run_id: str) -> Iterator[Fault]:
    if record.id != run_id:
        yield Fault(run_id, RECORD, f"is the record of another run, {record.id}", "run")
    elif record.spec.id != record.id:
        yield Fault(
            run_id,
            RECORD,
            f"its specification has the id {record.spec.id}: changed by hand, or made under an earlier protocol "
            f"(tunewise {record.environment.tunewise}); nothing takes it for that one, and it may be removed",
            None,
        )


def _files(record: RunRecord, folder: Path) -> Iterator[Fault]:
    wrong = {name: said for name in record.files if (said := _wrong(folder, name, record.files[name]))}
    if record.status == "done":
        if record.results is None:
            wrong[RECORD] = "the run is done and has no results"
        if HISTORY not in record.files:
            wrong[HISTORY] = "the run is done and its record names no history"
        for file in sorted((folder / "adapter").rglob("*.safetensors")):
            if (name := file.relative_to(folder).as_posix()) not in record.files:
                wrong[name] = "is not among the files of the record"
    for name, said in wrong.items():
        yield Fault(record.id, name, said, "run")


def _wrong(folder: Path, name: str, checksum: str) -> str | None:
    """What is wrong with one file of a run; its content is looked at, too, since a run may have recorded rubbish."""
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        return "lies outside the run's folder"
    try:
        differs = sha256(file) != checksum
        inside = _bad_content(file)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"can't be read ({error.strerror})"
    if differs:
        return "is not as it was written (its checksum differs" + (f"; {inside})" if inside else ")")
    return inside


def _bad_content(file: Path) -> str | None:
    if file.name == HISTORY:
        return _bad_history(file)
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="numpy") as opened:
                return None if opened.keys() else "holds no tensors"
        except SafetensorError as error:
            return f"is no safetensors file ({error})"
    if file.suffix == ".json":
        try:
            json.loads(file.read_bytes())
        except ValueError as error:
            return f"is no JSON ({error})"
    return None


def _bad_history(file: Path) -> str | None:
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            entry = json.loads(line)
        except ValueError:
            return f"line {number} is no JSON"
        if not isinstance(entry, dict) or not {"kind", "step"} <= entry.keys():
            return f"line {number} has no kind or step"
    return None


def _measures(run_id: str, folder: Path) -> Iterator[Fault]:
    for file in sorted(folder.glob("measures/*.json")):
        if said := _unreadable(file, Measured, "`tunewise compare` makes it again"):
            yield Fault(run_id, f"measures/{file.name}", said, "file")


def _path(run_id: str, folder: Path) -> Iterator[Fault]:
    """The snapshots that the list of a trajectory names."""
    file = folder / TRAJECTORY
    try:
        listed: dict[str, Any] = json.loads(file.read_bytes())["snapshots"]
        sums = {name: str(known["sha256"]) for name, known in listed.items()}
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield Fault(run_id, TRAJECTORY, f"can't be read ({error}); train it again with --trajectory", "file")
        return
    wrong = [f"{name} {said}" for name in sums if (said := _wrong(file.parent, name, sums[name]))]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        yield Fault(run_id, TRAJECTORY, f"{wrong[0]}{more}; train it again with --trajectory", "file")


def _unreadable(file: Path, kind: type[BaseModel], remedy: str) -> str | None:
    try:
        read_document(file, kind, remedy)
    except FileNotFoundError:
        return None
    except StoreError as error:
        return str(error).removeprefix(f"{file} ")
    return None
