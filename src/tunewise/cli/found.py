"""What a command line means: a comparison by its folder or the runs folder it is in, a run by its folder or its id."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tunewise.errors import SpecError

if TYPE_CHECKING:
    from tunewise.evidence import Evidence

RUN_OR_ADAPTER = "A run's folder, or the beginning of its id; or the folder of any adapter."
RUNS_HELP = "A runs folder (its latest comparison is taken), or a compare-... folder in one."


def finished(path: Path, *, measures: bool = False) -> Evidence:
    """The comparison at `path`, read. Where a runs folder holds several, one line on stderr says which was taken.
    Raises what `evidence.locate` and `evidence.read` raise."""
    from tunewise import evidence

    folder, others = evidence.locate(path)
    if others:
        names = ", ".join(other.name for other in others[:8]) + (", ..." if len(others) > 8 else "")
        typer.echo(f"note: {path} holds {len(others) + 1} comparisons; {folder.name} is the latest ({names})", err=True)
    known = evidence.read(folder, measures=measures)
    if known.unfinished:
        typer.echo(f"note: {known.unfinished} of {len(known.records)} runs are not finished", err=True)
    return known


def run_or_adapter(target: Path, runs: Path) -> Path:
    """The folder that is meant: `target` where it is one, else that of the run in `runs` whose id begins like this.
    Raises `SpecError` where there is neither, or more than one run."""
    if target.is_dir():
        return target
    if not re.fullmatch(r"[0-9a-f]{4,16}", str(target)):
        raise SpecError(f"{target}: there is no such folder; give a run's folder or id, or an adapter's folder")
    from tunewise.store.lookup import find_run

    store, run_id = find_run(str(target), runs)
    return store.folder(run_id)
