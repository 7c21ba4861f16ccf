"""Trainer checkpoints that can be trusted: a checkpoint counts once its checksums are written, last."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tunewise.store.files import sha256, write_atomically

SEAL = "checksums.json"


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
