"""One study from the command line: its plan is printed, it runs under the progress view, its result is returned."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from tunewise.cli.tables import rich_table
from tunewise.text_format import pluralize

if TYPE_CHECKING:
    from rich.console import Console

    from tunewise.spec import ExecutionOptions, StudySpec
    from tunewise.store.folders import RunStore
    from tunewise.study.plan import Plan, PlannedRun

Result = TypeVar("Result")
_MOST_VALUES = 12
"""Values of an axis that are printed."""


def run_and_show(
    run: Callable[..., Result], options: ExecutionOptions, study: StudySpec, console: Console, *, dry_run: bool
) -> Result | None:
    """What `run` (`tunewise.compare`, `tunewise.sweep`) returns; None for a dry run."""
    from tunewise.device import use_device

    with use_device(options.device):
        return _run_and_show(run, options, study, console, dry_run=dry_run)


def _run_and_show(
    run: Callable[..., Result], options: ExecutionOptions, study: StudySpec, console: Console, *, dry_run: bool
) -> Result | None:
    with console.status("reading models and data ..."):
        from tunewise.cli.progress import show_progress
        from tunewise.store.folders import RunStore
        from tunewise.study.plan import make_plan
        from tunewise.study.policies.rates import apply_known_rates
        from tunewise.study.resources import check_plan
        from tunewise.training.tracking import check_trackers

        check_trackers(options.track)
        store = RunStore(options.out)
        plan = make_plan(study, store)
        with_rates = apply_known_rates(plan, store)
    _show_plan(with_rates, store, options, console)
    if dry_run:
        if not options.force:
            check_plan(with_rates, store, options)
        return None
    with show_progress(console) as listener:
        return run(study, listener=listener, plan=plan, **options.model_dump())


def _show_plan(plan: Plan, store: RunStore, options: ExecutionOptions, console: Console) -> None:
    from tunewise.study.estimates import Pace
    from tunewise.study.resources import side_by_side

    if plan.spec.is_comparison:
        size = f"{pluralize(len(plan.rows), 'method')} x {pluralize(len(plan.spec.seeds), 'seed')}"
        title = f"{options.title}: " if options.title else ""
        console.print(f"[bold]{title}{size}[/bold] on {plan.spec.model.path}")
        titles = ("method", "trained", "adapter", "head", "share", "rate")
        console.print(rich_table(titles, [_method_row(row, plan) for row in plan.rows]))
    else:
        _show_axes(plan, options.title or "Sweep", console)
    for path, facts in {run.spec.data.path: run.data for run in plan.runs}.items():
        size = f"{facts.train:,} training, {facts.validation:,} validation, {facts.test:,} test examples"
        labels = f", {len(facts.labels)} classes" if facts.labels else ""
        console.print(f"{path}: {size}{labels}", markup=False, soft_wrap=True)
        for note in facts.notes:
            console.print(f"  - {note}", style="yellow" if note.startswith("Warning") else "dim", markup=False)
    if plan.spec.model.dtype == "bfloat16" and any(run.spec.method.name == "fft" for run in plan.runs):
        console.print("  - fft in bfloat16: updates below a 256th of a weight are lost; --dtype float32 keeps them.")
    if plan.spec.tuning is not None:
        from tunewise.study.policies.rates import RatePolicy

        count = len(RatePolicy(plan, store).upcoming())
        trials = pluralize(count, "trial") if count else "trials beyond the grids"  # none left in them, not settled yet
        console.print(f"first {trials} for the learning rates")
    done = f", {len(plan.done)} done already" if plan.done else ""
    todo = pluralize(len(plan.todo), "run")
    console.print(f"{todo} to do{done}; everything goes to {options.out}", soft_wrap=True)
    if plan.todo:
        steps = pluralize(sum(run.steps for run in plan.todo), "step")
        left, at_once = Pace.of(plan, store).remaining(plan.todo), side_by_side(options, len(plan.todo))
        console.print(f"{steps}; time: {left.words(at_once.runs)}")


def _show_axes(plan: Plan, title: str, console: Console) -> None:
    from tunewise.spec.axes import AXES, shown, varying

    specs = [run.spec for run in plan.runs]
    console.print(f"[bold]{title}[/bold]: {pluralize(len(specs), 'run')}")
    for axis in varying(specs):
        names = list({shown(value): None for spec in specs if (value := AXES[axis](spec)) is not None})
        more = f", ... {names[-1]}" if len(names) > _MOST_VALUES else ""
        console.print(f"  {axis:<14} {', '.join(names[:_MOST_VALUES])}{more}", markup=False)
    if plan.requested > len(specs):
        console.print(f"  {plan.requested - len(specs)} more have the same content, and are run once")


def _method_row(row: PlannedRun, plan: Plan) -> list[str]:
    facts = row.facts
    counts = [f"{count:,}" for count in (facts.trainable, facts.adapter, facts.head)]
    return [row.spec.method.label, *counts, f"{facts.trainable / facts.parameters:.3%}", _rate(row, plan)]


def _rate(row: PlannedRun, plan: Plan) -> str:
    """The learning rate, or the grid that will be searched."""
    tuning, spec = plan.spec.tuning, row.spec
    if tuning is None or spec.given_rate:
        return f"{spec.learning_rate:g}" + (", given" if tuning else "")
    from tunewise.study.policies.rate_grid import first_rates

    rates = first_rates(spec.learning_rate, tuning.factor, tuning.trials)
    return f"{min(rates):g} to {max(rates):g}"
