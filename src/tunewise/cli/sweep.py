"""`tunewise sweep`: any key of a comparison as a list, the runs of all combinations, and a table of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tunewise.cli import flags
from tunewise.spec import ExecutionOptions, StudySpec, load_yaml, merge_specs, parse, split_options

if TYPE_CHECKING:
    from rich.console import Console

    from tunewise.study.plan import Plan
    from tunewise.study.sweep import Sweep


@flags.spec_flags(ExecutionOptions, without=("costs", "track"))
def sweep(
    given: dict[str, Any],
    spec: Annotated[Path, Parameter(help="YAML file; every list in it is an axis.")],
    /,
    *,
    dry_run: flags.DryRun = False,
) -> int:
    """Run a sweep."""
    options, content = split_options(merge_specs(load_yaml(spec), given), source=str(spec))
    study, title = parse(StudySpec, content, source=str(spec)), options.title or "Sweep"

    from tunewise.quiet import quiet_libraries

    quiet_libraries()
    from rich.console import Console

    console, out = Console(highlight=False), Path(options.out)
    with console.status("reading models and data ..."):
        from tunewise.store.folders import RunStore
        from tunewise.study.plan import make_plan
        from tunewise.study.resources import check_plan, side_by_side
        from tunewise.study.session import make_pace
        from tunewise.study.sweep import sweep as run_sweep

        store = RunStore(out)
        plan = make_plan(study, store)
        left = make_pace(plan, store).remaining(plan.todo)
        at_once = side_by_side(options, len(plan.todo))
    _show_plan(plan, console, out, title)
    if plan.todo:
        serially = "" if at_once.sharing or not left.timed else " if they were done one after another"
        console.print(f"time: {left.words(at_once.runs)}{serially}")
    if dry_run:
        if not options.force:
            check_plan(plan, store, options)
        return 0

    from tunewise.cli.progress import StudyProgress

    steps = sum(run.steps for run in plan.todo) // max(1, len(plan.todo))
    with StudyProgress(console, len(plan.todo), steps) as listener:
        result = run_sweep(study, listener=listener, plan=plan, **options.model_dump())
    _show_result(result, console)
    return 1 if result.failed else 0


def _show_plan(plan: Plan, console: Console, out: Path, title: str) -> None:
    from tunewise.study.axes import AXES, shown, varying
    from tunewise.text_format import pluralize

    specs = [run.spec for run in plan.runs]
    console.print(f"[bold]{title}[/bold]: {pluralize(len(specs), 'run')}")
    for axis in varying(specs):
        names = list({shown(value): None for spec in specs if (value := AXES[axis](spec)) is not None})
        more = f", ... {names[-1]}" if len(names) > 12 else ""
        console.print(f"  {axis:<14} {', '.join(names[:12])}{more}", markup=False)
    for path, facts in {run.spec.data.path: run.data for run in plan.runs}.items():
        size = f"{facts.train:,} training, {facts.validation:,} validation, {facts.test:,} test examples"
        console.print(f"  {path}: {size}", markup=False, soft_wrap=True)
        for note in facts.notes:
            console.print(f"    - {note}", style="dim", markup=False)
    if plan.requested > len(specs):
        console.print(f"  {plan.requested - len(specs)} more have the same content, and are run once")
    ready = f", {len(plan.done)} done already" if plan.done else ""
    steps = pluralize(sum(run.steps for run in plan.todo), "step")
    console.print(f"{pluralize(len(plan.todo), 'run')} to do, {steps}{ready}; everything goes to {out}", soft_wrap=True)


def _show_result(result: Sweep, console: Console) -> None:
    from tunewise.study.axes import shown
    from tunewise.study.sweep_table import best, group_seeds

    counts = Counter(row.status for row in result.rows)
    console.print("", ", ".join(f"{count} {status}" for status, count in counts.most_common()), sep="\n")
    settings = group_seeds(result.rows)
    chosen = best(settings)
    if chosen is not None and chosen.mean("test") is not None:
        axes = [axis for axis in chosen.at if len({str(row.at[axis]) for row in result.rows}) > 1]
        where = ", ".join(f"{axis} {shown(chosen.at[axis])}" for axis in axes)
        console.print(
            f"best on validation{f': {where}' if where else ''}: validation {chosen.mean('validation'):.4g}, "
            f"test {chosen.mean('test'):.4g} ({chosen.finished[0].metric}, {chosen.standing})",
            markup=False,
        )
    for name in ("sweep.html", "table.csv", "log.txt"):
        console.print(f"{name.partition('.')[0]:<6} {result.folder / name}", soft_wrap=True)
