"""`tunewise predict`: the classes, numbers or texts that a finished run predicts for new data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tunewise.cli import flags
from tunewise.cli.locating import run_or_adapter
from tunewise.spec import StudySpec
from tunewise.text_format import pluralize


@flags.spec_flags(StudySpec, only=("text", "text_pair", "label", "choices", "image", "encoding"))
def predict(
    given: flags.Given,
    run: Annotated[Path, Parameter(help="Folder of a run or a comparison, or the beginning of a run's id.")],
    /,
    *,
    data: Annotated[str, Parameter(help="New data in any layout that the run's may have; needs no labels.")],
    out: Annotated[Path, Parameter(help="CSV file to write; must not exist.")],
    runs: flags.RunsFolder = Path("runs"),
) -> None:
    """Write a row for each row of the data. Columns are those of the run's data unless given."""
    run = run_or_adapter(run, runs)

    from rich.console import Console

    with Console(stderr=True).status("predicting ..."):
        from tunewise.predicting import predict as predict_rows

        rows = predict_rows(run, data, out, **given.get("data", {}))
    print(f"{out}  ({pluralize(len(rows), 'row')}, run {run.name})")
