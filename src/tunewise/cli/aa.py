"""`tunewise aa`: is a method called different from itself as rarely as a comparison promises?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tunewise.cli.found import RUNS_HELP, finished
from tunewise.errors import SpecError, suggest_nearest


def aa(
    runs: Annotated[Path, typer.Argument(help=RUNS_HELP)] = Path("runs"),
    method: Annotated[
        str | None, typer.Option(help="Whose runs and spread are taken.  [default: the one with most finished seeds]")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Simulated comparisons.", min=20)] = 200,
    seeds: Annotated[
        str, typer.Option(help="Seeds of each simulated comparison; several in turn, with commas.")
    ] = "3,10",
    names: Annotated[int, typer.Option(help="Under how many names the method takes part.", min=2)] = 2,
    real: Annotated[
        bool, typer.Option("--real", help="Split the method's own seeds in two halves instead (4 seeds or more).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of JSON objects.")] = False,
) -> None:
    """A/A check: a method against itself, through everything that a comparison goes through.

    Exit code 1 where it is called different more often than 95 % intervals allow (19 of 200).
    """
    counts = _counts(seeds)
    known = finished(runs)
    from dataclasses import asdict

    from tunewise.advise.aa import check_by_simulation, check_by_splitting
    from tunewise.advise.summary import summarise

    summaries = {s.label: s for s in summarise(known.records, known.costs, known.spec.reference)}
    if method is not None and method not in summaries:
        raise SpecError(f"method {method!r}{suggest_nearest(method, summaries)}")
    taken = summaries[method] if method else max(summaries.values(), key=lambda s: len(s.seeds))
    records = [r for r in known.records if r.spec.method.label == taken.label]
    if real:
        step = 1 / taken.test_items if taken.is_share and taken.test_items else 0.0
        shown = f"test {taken.metric.replace('_', ' ')}"
        checks = [check_by_splitting(taken.metric_by_seed, taken.higher_is_better, step, shown, repeats)]
    else:
        checks = [check for count in counts for check in check_by_simulation(records, count, repeats, names)]
    if as_json:
        rows = [{"method": taken.label, **asdict(c), "rate": c.rate, "holds": c.holds} for c in checks]
        typer.echo(json.dumps(rows, indent=1))
    else:
        number = len(taken.seeds)
        if real:
            typer.echo(f"{taken.label} against itself: its {number} seeds in two halves, {repeats} random splits")
        else:
            typer.echo(
                f"{taken.label} against itself under {names} names: {repeats} simulated comparisons with the spread of "
                f"its {number} seeds"
            )
        for c in checks:
            interval = (
                f"95 % interval {c.low:.1%} to {c.high:.1%}"
                if c.low is not None and c.high is not None
                else "the splits share runs, so there is no interval"
            )
            verdict = f"holds (at most {c.allowed})" if c.holds else f"does NOT hold (at most {c.allowed})"
            if c.deviation == 0:
                verdict = "but its seeds are all the same here, so this says nothing"
            typer.echo(
                f"  {c.seeds} seeds, {c.name}, against {c.against}: called different {c.different} of {c.repeats} "
                f"times, {c.rate:.1%}; {interval}; {verdict}"
            )
    if not all(c.holds for c in checks):
        raise typer.Exit(1)


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        counts = []
    if not counts or min(counts) < 2:
        raise SpecError(f"--seeds {text!r}: give counts of 2 or more, like 3,10")
    return counts
