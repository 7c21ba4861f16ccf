"""Trainer checkpoints that can be trusted: a checkpoint counts once its checksums are written, last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from tunewise.store.files import sha256, write_atomically

SEAL = "checksums.json"
_WAYS = "ways.json"


def seal(checkpoint: Path) -> None:
    """Write the checksums of a checkpoint's files: from now on it is whole."""
    sums = {f.name: sha256(f) for f in sorted(checkpoint.iterdir()) if f.is_file() and f.name != SEAL}
    write_atomically(checkpoint / SEAL, json.dumps(sums, indent=1))


def is_whole(checkpoint: Path) -> bool:
    """Whether every file is there and as it was written."""
    try:
        sums: dict[str, str] = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
        return bool(sums) and all(sha256(checkpoint / name) == value for name, value in sums.items())
    except (OSError, ValueError):
        return False


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint; half-written and damaged ones beside it are removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)
    for checkpoint in found:
        if is_whole(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint, ignore_errors=True)
    return None


def step_of(checkpoint: Path) -> int:
    """Number of optimizer steps done at the checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def ways(folder: Path, now: Sequence[str]) -> list[str]:
    """In words, how the steps of a run have been done that are not done as in a run by itself: those of earlier starts
    that left checkpoints here, and `now`."""
    note = folder / _WAYS
    earlier: list[str] = []
    if note.exists() and any(folder.glob("checkpoint-*")):
        earlier = json.loads(note.read_text(encoding="utf-8"))
    found = list(dict.fromkeys([*earlier, *now]))
    if found:
        folder.mkdir(exist_ok=True)
        write_atomically(note, json.dumps(found))
    return found
