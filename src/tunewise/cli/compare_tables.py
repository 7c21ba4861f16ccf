"""What `tunewise compare` prints: the plan before the runs, what came of them after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunewise.comparison import Comparison
    from tunewise.planning import Plan, PlannedMethod
    from tunewise.store.folders import RunStore


def show_plan(plan: Plan, console: Any, folder: str) -> None:
    """Sizes of the data, what each method trains and at which rate, how many runs are left."""
    from rich.table import Table

    from tunewise.tasks.splits import pluralize

    data = plan.data
    todo = len(plan.runs) - len(plan.done)
    size = f"{pluralize(len(plan.methods), 'method')} x {pluralize(len(plan.spec.seeds), 'seed')}"
    console.print(
        f"[bold]{size}[/bold] on {plan.spec.model.path}: "
        f"{data.train:,} training, {data.validation:,} validation, {data.test:,} test examples"
        f"{f', {len(data.labels)} classes' if data.labels else ''}; {pluralize(plan.steps, 'step')} a run",
        highlight=False,
    )
    for note in data.notes:
        console.print(f"  - {note}", style="dim", highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, right in (
        ("method", False),
        ("trained", True),
        ("adapter", True),
        ("head", True),
        ("share", True),
        ("rate", True),
    ):
        table.add_column(name, justify="right" if right else "left")
    for planned in plan.methods:
        facts = planned.facts
        table.add_row(
            planned.method.label,
            f"{facts.trainable:,}",
            f"{facts.adapter:,}",
            f"{facts.head:,}",
            f"{facts.trainable / facts.parameters:.3%}",
            _rate(planned, plan),
        )
    console.print(table)
    ready = f", {len(plan.done)} done already" if plan.done else ""
    console.print(f"{pluralize(todo, 'run')} to do{ready}; everything goes to {folder}", highlight=False)


def _rate(planned: PlannedMethod, plan: Plan) -> str:
    """The rate, or the grid that will be searched."""
    tuning = plan.spec.tuning
    method, common = planned.method.learning_rate, plan.spec.training.learning_rate
    if tuning is None or (not tuning.given and (method or common)):
        return f"{planned.learning_rate:g}" + (", given" if tuning else "")
    from tunewise.tuning.grid import first_rates

    rates = first_rates(planned.learning_rate, tuning.factor, tuning.trials)
    return f"{min(rates):g} to {max(rates):g}"


def show_besides(plan: Plan, store: RunStore, console: Any) -> None:
    """Trials that come before the runs."""
    if plan.spec.tuning is not None:
        from tunewise.tasks.splits import pluralize
        from tunewise.tuning import waiting_trials

        count = waiting_trials(plan, store)
        trials = pluralize(count, "trial") if count else "trials beyond the grids"  # none left in them, yet not settled
        console.print(f"before them {trials} for the learning rates", highlight=False)


def show_manner(jobs: int | None, console: Any) -> None:
    """Of a dry run: in how many processes runs would be done."""
    if jobs is not None:
        processes = f"{jobs} processes of one thread each" if jobs > 1 else "a process of one thread"
        console.print(f"runs in {processes}", highlight=False)


def show_result(found: Comparison, console: Any) -> None:
    """The table, the recommendation, where the report and the recommended adapter are."""
    from tunewise.report.table import console_table

    console.print()
    console.print(console_table(found.summaries, found.recommendation))
    console.print()
    if found.tuning is not None:
        rates = ", ".join(
            f"{row.method} {row.chosen:g}"
            + (" (given)" if row.given else f" (the {row.edge} tried)" if row.edge else "")
            for row in found.tuning.methods
        )
        console.print(f"Learning rates: {rates}", highlight=False, markup=False)
        console.print()
    for sentence in found.recommendation.sentences:
        console.print(sentence, highlight=False, markup=False)
    console.print()
    console.print(f"report   {found.report}", highlight=False, soft_wrap=True)
    chosen = [r for r in found.records if r.spec.method.label == found.recommendation.choice and r.status == "done"]
    if chosen:
        adapter = found.folder.parent / chosen[0].id / "adapter"
        console.print(
            f"adapter  {adapter}  ({chosen[0].spec.method.label}, seed {chosen[0].spec.seed})",
            highlight=False,
            soft_wrap=True,
        )
