"""`history.jsonl`: one line per step and per epoch, valid after every kind of stop."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tunewise.store.files import write_atomically
from tunewise.store.records import EpochLosses


class Journal:
    """Appends entries; a resumed run first drops those after its checkpoint. Of several processes one `writes`."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes

    def write(self, **entry: Any) -> None:
        """Append an entry."""
        if not self.writes:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")

    def mean_loss_since_epoch(self) -> float | None:
        """Mean training loss (dropout on, weights moving) of the steps after the last epoch entry."""
        losses: list[float] = []
        for entry in reversed(read_history(self.path)):
            if entry["kind"] == "epoch":
                break
            losses.append(entry["loss"])
        return math.fsum(losses) / len(losses) if losses else None

    def epochs(self) -> list[EpochLosses]:
        """The losses at each evaluation, in order."""
        return [
            EpochLosses(epoch=entry["epoch"], train=entry["train_loss"], validation=entry["validation"]["loss"])
            for entry in read_history(self.path)
            if entry["kind"] == "epoch"
        ]

    def rewind(self, step: int) -> None:
        """Keep the entries up to optimizer step `step`; 0 empties the file."""
        if not self.writes:
            return
        kept = [entry for entry in read_history(self.path) if entry["step"] <= step]
        text = "".join(json.dumps(entry) + "\n" for entry in kept)
        write_atomically(self.path, text)


def read_history(path: Path) -> list[dict[str, Any]]:
    """The entries of a history file; a last line that was cut short is left out."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries
