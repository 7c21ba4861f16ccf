"""What `tunewise compare` prints: the plan before the runs, the results after them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunewise.cli.tables import rich_table

if TYPE_CHECKING:
    from rich.console import Console

    from tunewise.spec import ExecutionOptions
    from tunewise.store.folders import RunStore
    from tunewise.study.compare import Comparison
    from tunewise.study.plan import Plan, PlannedRun


def show_plan(plan: Plan, store: RunStore, options: ExecutionOptions, console: Console) -> None:
    """Sizes of the data, what each method trains and at which rate, how many runs are left."""
    from tunewise.text_format import pluralize

    data = plan.runs[0].data
    size = f"{pluralize(len(plan.rows), 'method')} x {pluralize(len(plan.spec.seeds), 'seed')}"
    console.print(
        f"[bold]{size}[/bold] on {plan.spec.model.path}: "
        f"{data.train:,} training, {data.validation:,} validation, {data.test:,} test examples"
        f"{f', {len(data.labels)} classes' if data.labels else ''}; {pluralize(plan.runs[0].steps, 'step')} a run"
    )
    for note in data.notes:
        console.print(f"  - {note}", style="dim", markup=False)
    rows = []
    for row in plan.rows:
        facts = row.facts
        counts = [f"{count:,}" for count in (facts.trainable, facts.adapter, facts.head)]
        share = f"{facts.trainable / facts.parameters:.3%}"
        rows.append([row.spec.method.label, *counts, share, _rate(row, plan)])
    console.print(rich_table(("method", "trained", "adapter", "head", "share", "rate"), rows))
    done = f", {len(plan.done)} done already" if plan.done else ""
    todo = pluralize(len(plan.todo), "run")
    console.print(f"{todo} to do{done}; everything goes to {options.out}")
    if plan.spec.tuning is not None:
        from tunewise.study.policies.rates import RatePolicy

        count = len(RatePolicy(plan, store).upcoming())
        trials = pluralize(count, "trial") if count else "trials beyond the grids"  # none left in them, not settled yet
        console.print(f"before them {trials} for the learning rates")
    if options.jobs is not None:
        processes = "processes" if options.jobs > 1 else "process"
        console.print(f"runs in {options.jobs} {processes} of one thread each")


def _rate(row: PlannedRun, plan: Plan) -> str:
    """The learning rate, or the grid that will be searched."""
    tuning, spec = plan.spec.tuning, row.spec
    if tuning is None or (not tuning.given and (spec.method.learning_rate or spec.training.learning_rate)):
        return f"{spec.learning_rate:g}" + (", given" if tuning else "")
    from tunewise.study.policies.rate_grid import first_rates

    rates = first_rates(spec.learning_rate, tuning.factor, tuning.trials)
    return f"{min(rates):g} to {max(rates):g}"


def show_result(result: Comparison, console: Console) -> None:
    """The table, the recommendation, and where the report and the recommended adapter are."""
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
        label = f"({choice}, seed {chosen[0].spec.seed})"
        console.print(f"adapter  {adapter}  {label}", soft_wrap=True)
