"""`tunewise compare`: methods x seeds on one model and data set, and which to use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tunewise.cli import flags
from tunewise.cli.requests import read_request
from tunewise.spec import ExecutionOptions, StudySpec

if TYPE_CHECKING:
    from rich.console import Console

    from tunewise.study.compare import Comparison


@flags.spec_flags(StudySpec, ExecutionOptions)
def compare(
    given: dict[str, Any],
    *,
    preset: Annotated[str | None, Parameter(help="A spec that comes with tunewise: quickstart.")] = None,
    spec: flags.SpecFile = None,
    dry_run: flags.DryRun = False,
) -> int:
    """Run a comparison."""
    result = run_comparison(*read_request(given, preset, spec), dry_run=dry_run)
    return 1 if result is not None and result.failed else 0


def run_comparison(options: ExecutionOptions, study: StudySpec, *, dry_run: bool) -> Comparison | None:
    """Print the plan, run it, print the result; None for a dry run."""
    from tunewise.quiet import quiet_libraries

    quiet_libraries()
    from rich.console import Console

    from tunewise.cli.studies import run_and_show
    from tunewise.study.compare import compare
    from tunewise.study.plan import require_comparison

    require_comparison(study)
    console = Console(highlight=False)
    result = run_and_show(compare, options, study, console, dry_run=dry_run)
    if result is not None:
        _show_result(result, console)
    return result


def _show_result(result: Comparison, console: Console) -> None:
    from tunewise.report.table import console_table

    console.print("", console_table(result.summaries, result.recommendation), "", sep="\n")
    if result.tuning is not None:
        rates = [
            f"{row.method} {row.chosen:g}"
            + (" (given)" if row.given else f" (the {row.edge} tried)" if row.edge else "")
            for row in result.tuning.methods
        ]
        console.print(f"Learning rates: {', '.join(rates)}\n", markup=False)
    console.print(*result.recommendation.sentences, "", sep="\n", markup=False)
    console.print(f"report   {result.report}", soft_wrap=True)
    choice = result.recommendation.choice
    chosen = [r for r in result.records if r.spec.method.label == choice and r.status == "done"]
    if chosen:
        adapter = result.folder.parent / chosen[0].id / "adapter"
        console.print(f"adapter  {adapter}  ({choice}, seed {chosen[0].spec.seed})", soft_wrap=True)
