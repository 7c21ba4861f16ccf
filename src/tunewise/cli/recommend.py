"""`tunewise recommend`: which method to use, from finished runs and what the user can afford."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tunewise.cli import flags
from tunewise.cli.locating import read_study
from tunewise.errors import SpecError

if TYPE_CHECKING:
    from tunewise.advise.decision import Limits
    from tunewise.advise.recommend import Recommendation
    from tunewise.advise.summary import MethodSummary


def recommend(
    runs: flags.Study = Path("runs"),
    /,
    *,
    max_memory: Annotated[str | None, Parameter(help="Limit of peak memory in training: 6GB, 6GiB, 600MB.")] = None,
    max_time: Annotated[str | None, Parameter(help="Limit of the training time of a run: 90s, 10min, 2h.")] = None,
    metric: Annotated[str | None, Parameter(help="Test metric that decides; the runs' own unless given.")] = None,
    tolerance: Annotated[str, Parameter(help="Points that may be given away for a cheaper method.")] = "0",
    criterion: Annotated[
        str | None, Parameter(help="A metric, gap, or METRIC+gap as in arXiv 2606.13767; the metric unless given.")
    ] = None,
    as_json: flags.Json = False,
) -> None:
    """Recommend one method."""
    from tunewise.advise.decision import Limits
    from tunewise.advise.objectives import parse_criterion
    from tunewise.advise.units import parse_memory, parse_seconds, parse_tolerance

    limits = Limits(
        max_memory_bytes=parse_memory(max_memory) if max_memory is not None else None,
        max_seconds=parse_seconds(max_time) if max_time is not None else None,
    )
    kind, named = parse_criterion(criterion) if criterion is not None else ("metric", None)
    if named and metric and named != metric:
        raise SpecError(f"--criterion {criterion} and --metric {metric} name two metrics; give one")
    study = read_study(runs)

    from tunewise.advise.recommend import recommend as decide

    summaries = study.summarise(metric or named)
    limits = replace(limits, tolerance=parse_tolerance(tolerance, summaries[0].is_share))
    recommendation = decide(summaries, limits, kind, study.tuning)
    chosen = study.adapter_of(recommendation.choice)
    places = {"comparison": str(study.folder), "adapter": str(chosen[0]) if chosen else None}
    if as_json:
        facts = {"criterion": kind, "limits": asdict(limits), **places}
        print(json.dumps({**_as_data(summaries, recommendation, limits), **facts}, indent=1))
    else:
        _show(summaries, recommendation, limits)
        for name, place in places.items():
            if place:
                print(f"{name:<10}  {place}")


def _as_data(summaries: list[MethodSummary], recommendation: Recommendation, limits: Limits) -> dict[str, object]:
    from tunewise.advise.decision import describe_broken_limits
    from tunewise.advise.marks import MARKS

    methods = [
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
            "in_pareto_set": s.label in recommendation.pareto,
            "marks": [mark.name for mark in s.marks],
            "beyond_limits": describe_broken_limits(s, limits) or None,
        }
        for s in summaries
    ]
    floor = next((s.floor for s in summaries if s.floor), None)
    return {
        **asdict(recommendation),
        "sentences": recommendation.sentences,
        "evidence": recommendation.evidence,
        **{key: getattr(summaries[0], key) for key in ("metric", "higher_is_better", "reference")},
        "floor": floor.model_dump() if floor else None,
        "marks": {mark.name: mark.meaning for mark in MARKS if any(mark in s.marks for s in summaries)},
        "methods": methods,
    }


def _show(summaries: list[MethodSummary], recommendation: Recommendation, limits: Limits) -> None:
    from rich.console import Console

    from tunewise.advise.decision import describe_broken_limits
    from tunewise.report.table import console_table

    console = Console(highlight=False, markup=False)
    console.print(*recommendation.sentences, "", sep="\n")
    console.print(console_table(summaries, recommendation), "", sep="\n")
    if recommendation.runner_up:
        console.print(f"runner-up: {recommendation.runner_up}")
    beyond = [text for s in summaries if (text := describe_broken_limits(s, limits))]
    if beyond:
        console.print(f"beyond the limits: {'; '.join(beyond)}")
    if recommendation.would_change:
        console.print("\nWhat would change this:", *(f"  - {text}" for text in recommendation.would_change), sep="\n")
    console.print()
