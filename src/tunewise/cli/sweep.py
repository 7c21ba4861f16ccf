"""`tunewise sweep`: any key of a comparison as a list, all runs that come of it, and a table of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tunewise.cli import options
from tunewise.errors import SpecError

if TYPE_CHECKING:
    from tunewise.sweeps.driver import Sweep
    from tunewise.sweeps.planning import SweepPlan


def sweep(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="YAML file; every list in it is an axis.")],
    out: Annotated[Path, typer.Option(help="Where the runs and the sweep's folder go.")] = Path("runs"),
    on: Annotated[
        Literal["local", "ray"], typer.Option(help="Where the runs are done: on this machine, or as Ray tasks.")
    ] = "local",
    jobs: options.Jobs = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Cluster to join: auto, HOST:6379.  [default: a Ray of this machine's own]")
    ] = None,
    cpus_per_run: Annotated[float, typer.Option(help="With --on ray.", min=0.0)] = 1.0,
    gpus_per_run: Annotated[
        float | None,
        typer.Option(help="With --on ray; may be a part of one.  [default: 1 if there are any]", min=0),
    ] = None,
    retries: Annotated[
        int, typer.Option(help="With --on ray: how often a run is done again whose worker died.", min=0)
    ] = 3,
    force: options.Force = False,
    dry_run: options.DryRun = False,
) -> None:
    """Do every run of a sweep, each once, and write a table of them.

    The same command again does what is missing, and only that; two of them at once share the runs.
    """
    from tunewise.spec import StudySpec, load_yaml, parse, split_options

    for flag, value in (("--ray-address", ray_address),):
        if value is not None and on != "ray":
            raise SpecError(f"{flag} means something with --on ray alone")
    if jobs is not None and on != "local":
        raise SpecError("--jobs means something with --on local alone; Ray counts by --cpus-per-run, --gpus-per-run")
    options_in_file, content = split_options(load_yaml(spec), source=str(spec))
    title = options_in_file.title or "Sweep"
    checked = parse(StudySpec, content, source=str(spec))

    from tunewise.quiet import quiet_libraries

    quiet_libraries()
    from rich.console import Console

    console = Console()
    with console.status("reading models and data ..."):
        from tunewise.store.folders import RunStore
        from tunewise.sweeps.driver import check_sweep, pace_of
        from tunewise.sweeps.driver import sweep as do_sweep
        from tunewise.sweeps.planning import plan_sweep
        from tunewise.sweeps.room import RayOptions, side_by_side

        ray = RayOptions(ray_address, cpus_per_run, gpus_per_run, retries)
        store = RunStore(out)
        plan = plan_sweep(checked, store)
        left = pace_of(plan, store).remaining(plan.todo)
        at_once = side_by_side(on, ray, len(plan.todo), jobs)
    _show_plan(plan, console, out, title)
    if plan.todo:
        together = "" if at_once or not left.timed else " if they were done one after another"
        console.print(f"time: {left.words(at_once.runs if at_once else 1)}{together}", highlight=False)
    if dry_run:
        if not force:
            check_sweep(plan, out, at_once)
        return

    from tunewise.cli.sweep_progress import SweepProgress

    with SweepProgress(console, len(plan.todo)) as listener:
        found = do_sweep(
            checked,
            out,
            on=on,
            jobs=jobs,
            ray=ray,
            listener=listener,
            plan=plan,
            force=force,
            title=title,
        )
    _show_result(found, console)
    if found.failed:
        raise typer.Exit(1)


def _show_plan(plan: SweepPlan, console: Any, out: Path, title: str) -> None:
    from tunewise.sweeps.axes import AXES, shown, varying
    from tunewise.tasks.splits import pluralize

    specs = [run.spec for run in plan.runs]
    axes = varying(specs)
    console.print(f"[bold]{title}[/bold]: {pluralize(len(specs), 'run')}", highlight=False)
    for axis in axes:
        counts = Counter(shown(value) for spec in specs if (value := AXES[axis](spec)) is not None)
        names = list(counts)
        more = f", ... {names[-1]}" if len(names) > 12 else ""
        console.print(f"  {axis:<14} {', '.join(names[:12])}{more}", highlight=False, markup=False)
    for data in {run.spec.data.path: run.data for run in plan.runs}.items():
        path, facts = data
        size = f"{facts.train:,} training, {facts.validation:,} validation, {facts.test:,} test examples"
        console.print(f"  {path}: {size}", highlight=False, markup=False, soft_wrap=True)
        for note in facts.notes:
            console.print(f"    - {note}", style="dim", highlight=False, markup=False)
    if plan.asked > len(specs):
        console.print(f"  {plan.asked - len(specs)} further ones have the same content, and are run once")
    ready = f", {len(plan.done)} done already" if plan.done else ""
    steps = sum(run.steps for run in plan.todo)
    console.print(
        f"{pluralize(len(plan.todo), 'run')} to do, {pluralize(steps, 'step')}{ready}; everything goes to {out}",
        highlight=False,
        soft_wrap=True,
    )


def _show_result(found: Sweep, console: Any) -> None:
    from tunewise.sweeps.axes import shown
    from tunewise.sweeps.results import as_good, best, cells

    counts = Counter(row.status for row in found.rows)
    console.print()
    console.print(", ".join(f"{count} {status}" for status, count in counts.most_common()), highlight=False)
    settings = cells(found.rows)
    chosen = best(settings)
    if chosen is not None and chosen.mean("test") is not None:
        axes = [axis for axis in chosen.at if len({str(row.at[axis]) for row in found.rows}) > 1]
        where = ", ".join(f"{axis} {shown(chosen.at[axis])}" for axis in axes)
        ties = f"; as good on validation: {more}" if (more := as_good(settings, chosen)) else ""
        console.print(
            f"best on validation{f': {where}' if where else ''}: validation {chosen.mean('validation'):.4g}, "
            f"test {chosen.mean('test'):.4g} ({chosen.finished[0].metric}, {chosen.standing}){ties}",
            highlight=False,
            markup=False,
        )
    for name in ("sweep.html", "table.csv", "log.txt"):
        console.print(f"{name.partition('.')[0]:<6} {found.folder / name}", highlight=False, soft_wrap=True)
