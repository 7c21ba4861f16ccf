"""Trainer checkpoints that can be trusted: a checkpoint counts once its checksums are written, last."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tunewise.store.files import sha256, write_atomically

SEAL = "checksums.json"


def seal(checkpoint: Path) -> None:
    """Write the checksums of the files of a checkpoint: from now on it counts."""
    sums = {f.name: sha256(f) for f in sorted(checkpoint.iterdir()) if f.is_file() and f.name != SEAL}
    write_atomically(checkpoint / SEAL, json.dumps(sums, indent=1))


def is_intact(checkpoint: Path) -> bool:
    """Whether every file is there and as it was written."""
    try:
        sums: dict[str, str] = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
        return bool(sums) and all(sha256(checkpoint / name) == value for name, value in sums.items())
    except (OSError, ValueError):
        return False


def latest(folder: Path) -> Path | None:
    """The newest intact checkpoint; incomplete and damaged newer ones are removed."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        if is_intact(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint, ignore_errors=True)
    return None


def step_of(checkpoint: Path) -> int:
    """Number of optimizer steps done at the checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def most_processes(folder: Path, now: int) -> int:
    """The largest number of processes that trained a part of this run: `now`, or before the checkpoints here."""
    note = folder / "processes.json"
    earlier = 1
    if note.exists() and any(folder.glob("checkpoint-*")):
        earlier = int(json.loads(note.read_text(encoding="utf-8")))
    most = max(earlier, now)
    if most > 1:
        folder.mkdir(exist_ok=True)
        write_atomically(note, json.dumps(most))
    return most
