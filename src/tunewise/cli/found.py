"""Which comparison a command line means: a compare-... folder, or the latest one of a runs folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from tunewise.evidence import Evidence

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
