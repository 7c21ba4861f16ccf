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


def _recommended_run(study: Evidence) -> Path:
    from tunewise.advise.recommend import recommend

    choice = recommend(study.summarise(), tuning=study.tuning).choice
    chosen = study.adapter_of(choice)
    if chosen is None:
        raise SpecError(f"{study.folder} recommends no method; give the folder of a run")
    adapter, seed = chosen
    print(f"note: run {adapter.parent.name} ({choice}, seed {seed}) is the recommended one", file=sys.stderr)
    return adapter.parent


def run_or_adapter(target: Path, runs: Path) -> Path:
    """`target` where it is a folder, else the folder of the run in `runs` with such an id; of a comparison the first
    run of the recommended method. Raises `SpecError`."""
    if (target / "compare.json").is_file():
        return _recommended_run(read_study(target))
    if target.is_dir():
        return target
    if not re.fullmatch(r"[0-9a-f]{4,16}", str(target)):
        raise SpecError(f"{target}: there is no such folder; give a run's folder or id, or an adapter's folder")
    from tunewise.store.lookup import find_run

    store, run_id = find_run(str(target), runs)
    return store.folder(run_id)
