"""What a path on the command line means: a study by its folder or its runs folder, a run by its folder or its id."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tunewise.errors import SpecError

if TYPE_CHECKING:
    from tunewise.study.evidence import Evidence


def read_study(path: Path, *, measures: bool = False) -> Evidence:
    """The study at `path`. A runs folder with several: a line on stderr says which was taken. Raises `SpecError`,
    `StoreError`."""
    from tunewise.study import evidence

    folder, others = evidence.locate(path)
    if others:
        names = ", ".join(other.name for other in others[:8]) + (", ..." if len(others) > 8 else "")
        note = f"note: {path} holds {len(others) + 1} comparisons; {folder.name} is the latest ({names})"
        print(note, file=sys.stderr)
    study = evidence.read(folder, measures=measures)
    if study.unfinished:
        print(f"note: {study.unfinished} of {len(study.records)} runs are not finished", file=sys.stderr)
    return study


def run_or_adapter(target: Path, runs: Path) -> Path:
    """`target` where it is a folder, else the folder of the run in `runs` with such an id. Raises `SpecError`."""
    if target.is_dir():
        return target
    if not re.fullmatch(r"[0-9a-f]{4,16}", str(target)):
        raise SpecError(f"{target}: there is no such folder; give a run's folder or id, or an adapter's folder")
    from tunewise.store.lookup import find_run

    store, run_id = find_run(str(target), runs)
    return store.folder(run_id)
