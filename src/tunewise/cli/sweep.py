"""`tunewise sweep`: any key of a comparison as a list, the runs of all combinations, and a table of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tunewise.cli import flags
from tunewise.spec import ExecutionOptions, StudySpec, load_yaml, merge_specs, parse, split_options

if TYPE_CHECKING:
    from rich.console import Console

    from tunewise.study.sweep import Sweep


@flags.spec_flags(ExecutionOptions, without=("costs", "track"))
def sweep(
    given: flags.Given,
    spec: Annotated[Path, Parameter(help="YAML file; every list in it is an axis.")],
    /,
    *,
    dry_run: flags.DryRun = False,
) -> int:
    """Run a sweep."""
    options, content = split_options(merge_specs(load_yaml(spec), given), source=str(spec))
    study = parse(StudySpec, content, source=str(spec))

    from rich.console import Console

    from tunewise.cli.studies import run_and_show
    from tunewise.study.sweep import sweep as run_sweep

    console = Console(highlight=False)
    result = run_and_show(run_sweep, options, study, console, dry_run=dry_run)
    if result is None:
        return 0
    _show_result(result, console)
    return 1 if result.failed else 0


def _show_result(result: Sweep, console: Console) -> None:
    from tunewise.report.sweep import best, group_seeds
    from tunewise.spec.axes import shown

    counts = Counter(row.status for row in result.rows)
    console.print("", ", ".join(f"{count} {status}" for status, count in counts.most_common()), sep="\n")
    settings = group_seeds(result.rows)
    chosen = best(settings)
    if chosen is not None and chosen.mean("test") is not None:
        varying = [axis for axis in chosen.at if len({str(row.at[axis]) for row in result.rows}) > 1]
        where = ", ".join(f"{axis} {shown(chosen.at[axis])}" for axis in varying)
        console.print(
            f"best on validation{f': {where}' if where else ''}: validation {chosen.mean('validation'):.4g}, "
            f"test {chosen.mean('test'):.4g} ({chosen.finished[0].facts['metric']}, {chosen.standing})",
            markup=False,
        )
    for name in ("sweep.html", "table.csv", "log.txt"):
        console.print(f"{name.partition('.')[0]:<6} {result.folder / name}", soft_wrap=True)
