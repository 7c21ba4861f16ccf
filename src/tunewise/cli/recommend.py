"""`tunewise recommend`: which method to use, from finished runs and what the user can afford."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewise.cli.found import RUNS_HELP, finished

if TYPE_CHECKING:
    from tunewise.advise.decision import Limits
    from tunewise.advise.recommend import Recommendation
    from tunewise.advise.summary import MethodSummary
    from tunewise.evidence import Evidence


def recommend(
    runs: Annotated[Path, typer.Argument(help=RUNS_HELP)] = Path("runs"),
    max_memory: Annotated[
        str | None, typer.Option(help="Peak of training, by the cost probe: 6GB, 6GiB, 600MB.")
    ] = None,
    max_time: Annotated[
        str | None, typer.Option(help="Training of one run, steps times the probe's step: 90s, 10min, 2h.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Test metric that decides.  [default: the runs' own]")] = None,
    tolerance: Annotated[
        str | None, typer.Option(help="Points that may be given away for a cheaper method.  [default: 0]")
    ] = None,
    criterion: Annotated[
        str | None,
        typer.Option(help="accuracy (any metric), gap, or accuracy+gap as in arXiv 2606.13767.  [default: the metric]"),
    ] = None,
    difference: Annotated[
        str | None, typer.Option(help="Also say how many further seeds would show a difference of so many points.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Recommend one method: the cheapest of those that can't be told apart from the best, within the limits.

    Exit code 5 where no method fits the limits.
    """
    from tunewise.advise.decision import Limits
    from tunewise.advise.objectives import parse_criterion
    from tunewise.advise.units import parse_memory, parse_seconds, parse_tolerance
    from tunewise.errors import SpecError

    limits = Limits(
        max_memory_bytes=parse_memory(max_memory) if max_memory is not None else None,
        max_seconds=parse_seconds(max_time) if max_time is not None else None,
    )
    kind, named = parse_criterion(criterion) if criterion is not None else ("metric", None)
    if named and metric and named != metric:
        raise SpecError(f"--criterion {criterion} and --metric {metric} name two metrics; give one")
    known = finished(runs)
    from dataclasses import replace

    from tunewise import evidence
    from tunewise.advise.recommend import recommend as decide
    from tunewise.advise.summary import add_item_comparisons, summarise

    summaries = summarise(known.records, known.costs, known.spec.reference, metric or named)
    summaries = add_item_comparisons(summaries, evidence.answers(known))
    share = summaries[0].is_share
    if tolerance is not None:
        limits = replace(limits, tolerance=parse_tolerance(tolerance, share))
    advice = decide(summaries, limits, kind, known.tuning)
    further, size = {}, 0.0
    if difference is not None:
        size = parse_tolerance(difference, share)
        if size == 0:
            raise SpecError("--difference 0: give a size above 0")
        further = _further_seeds(summaries, advice, size)
    if as_json:
        typer.echo(json.dumps(_content(known, summaries, advice, limits, kind, further), indent=1))
        return
    points = f"{100 * size:g} points" if share else f"{size:g}"
    _show(known, summaries, advice, limits, further, points)


def _further_seeds(summaries: list[MethodSummary], advice: Recommendation, size: float) -> dict[str, int]:
    """Seeds beyond those there are, for each method beside the choice."""
    from tunewise.advise.objectives import objectives_for
    from tunewise.advise.pooled_variance import seeds_needed

    choice = next(s for s in summaries if s.label == advice.choice)
    (objective,) = objectives_for("metric", choice)
    scores = {s.label: objective.values(s) for s in summaries if s.seeds}
    found = {}
    for s in summaries:
        if s is not choice and len(s.metric_by_seed.keys() & choice.metric_by_seed.keys()) > 1:
            found[s.label] = seeds_needed(scores, s.label, choice.label, size, objective.resolution(choice))
    return found


def _adapter(known: Evidence, choice: str) -> Path | None:
    done = [r for r in known.records if r.spec.method.label == choice and r.status == "done"]
    return known.store.folder(done[0].id) / "adapter" if done else None


def _content(
    known: Evidence,
    summaries: list[MethodSummary],
    advice: Recommendation,
    limits: Limits,
    criterion: str,
    further: dict[str, int],
) -> dict[str, Any]:
    """What `--json` prints."""
    from dataclasses import asdict

    from tunewise.advise.decision import describe_broken_limits

    adapter = _adapter(known, advice.choice)
    methods = []
    for s in summaries:
        methods.append(
            {
                "method": s.label,
                "seeds": list(s.seeds),
                "missing_runs": s.missing,
                "test_metric": asdict(s.test_metric) if s.test_metric else None,
                "gap": asdict(s.gap) if s.gap else None,
                "training_seconds": s.training_seconds,
                "peak_memory_bytes": s.peak_bytes,
                "trainable_parameters": s.trainable,
                "against_reference": s.metric_comparison.verdict if s.metric_comparison else None,
                "over_items": asdict(s.item_comparison) if s.item_comparison else None,
                "in_pareto_set": s.label in advice.pareto,
                "beyond_limits": describe_broken_limits(s, limits) or None,
                "further_seeds": further.get(s.label),
            }
        )
    return {
        **asdict(advice),
        "metric": summaries[0].metric,
        "higher_is_better": summaries[0].higher_is_better,
        "criterion": criterion,
        "reference": summaries[0].reference,
        "limits": asdict(limits),
        "methods": methods,
        "comparison": str(known.folder),
        "adapter": str(adapter) if adapter else None,
    }


def _show(
    known: Evidence,
    summaries: list[MethodSummary],
    advice: Recommendation,
    limits: Limits,
    further: dict[str, int],
    difference: str,
) -> None:
    from rich.console import Console
    from rich.table import Table

    from tunewise.advise.decision import describe_broken_limits
    from tunewise.advise.units import format_bytes, format_seconds
    from tunewise.number_format import TWO_SEEDS, widest

    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    for sentence in advice.sentences:
        say(sentence)
    console.print()
    names = {advice.choice: "the choice", advice.runner_up: "runner-up"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method", overflow="fold")
    for title in (f"test {summaries[0].metric.replace('_', ' ')}", "gap, nats", "training", "peak", "trained"):
        table.add_column(title, justify="right")
    table.add_column("")
    for s in sorted(summaries, key=lambda s: s.merit, reverse=True):
        role = names.get(s.label) or describe_broken_limits(s, limits) or ("" if s.seeds else "no finished run")
        if not role and s.label in advice.pareto:
            role = "in the Pareto set"
        table.add_row(
            s.label,
            _interval(s.test_metric, 100 if s.is_share else 1, 2, widest(s.metric, s.is_share)),
            _interval(s.gap, 1, 3),
            format_seconds(s.training_seconds) if s.training_seconds else "–",
            format_bytes(s.peak_bytes) if s.peak_bytes else "–",
            f"{s.trainable:,}" if s.trainable else "–",
            role,
        )
    console.print(table, highlight=False)
    if any(len(s.seeds) == 2 for s in summaries):
        console.print()
        say(TWO_SEEDS)
    if advice.would_change:
        console.print()
        say("What would change this:")
        for said in advice.would_change:
            say(f"  - {said}")
    if further:
        console.print()
        amounts = ", ".join(f"{label} {count}" for label, count in further.items())
        say(
            f"Further seeds to see a difference of {difference} to {advice.choice} four times in five, if the spread "
            f"is as it was: {amounts}."
        )
    console.print()
    console.print(f"comparison  {known.folder}", highlight=False, soft_wrap=True)
    if adapter := _adapter(known, advice.choice):
        console.print(f"adapter     {adapter}", highlight=False, soft_wrap=True)


def _interval(interval: Any, scale: float, digits: int, widest: float | None = None) -> str:
    from tunewise.number_format import plus_minus

    def shown(value: float) -> str:
        return f"{scale * value:.{digits}f}"

    return "–" if interval is None else shown(interval.mean) + plus_minus(interval.half_width, shown, widest)
