"""`tunewise aa`: is a method called different from itself as rarely as a comparison promises?"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from tunewise.cli import flags
from tunewise.cli.locating import read_study
from tunewise.errors import SpecError, suggest_nearest

if TYPE_CHECKING:
    from tunewise.advise.aa import AACheck


def aa(
    runs: flags.Study = Path("runs"),
    /,
    *,
    method: Annotated[str | None, Parameter(help="Method; the one with most finished seeds unless given.")] = None,
    repeats: Annotated[int, Parameter(validator=Number(gte=20), help="Simulated comparisons.")] = 200,
    seeds: Annotated[str, Parameter(help="Seeds per simulated comparison; several in turn, with commas.")] = "3,10",
    names: Annotated[int, Parameter(validator=Number(gte=2), help="Number of equal methods in a comparison.")] = 2,
    as_json: flags.Json = False,
) -> int:
    """Simulate comparisons of a method with itself."""
    counts = _counts(seeds)
    study = read_study(runs)
    from dataclasses import asdict

    from tunewise.advise.aa import check_by_simulation

    finished = Counter(r.spec.method.label for r in study.records if r.status == "done")
    if method is not None and method not in finished:
        raise SpecError(f"method {method!r}{suggest_nearest(method, finished)}")
    label = method or max(finished, key=finished.__getitem__, default="")
    records = [r for r in study.records if r.spec.method.label == label]
    checks = [check for count in counts for check in check_by_simulation(records, count, repeats, names)]
    if as_json:
        print(json.dumps([{"method": label, **asdict(c), "rate": c.rate, "holds": c.holds} for c in checks]))
    else:
        simulation = f"{repeats} simulated comparisons with the spread of its {finished[label]} seeds"
        print(f"{label} against itself under {names} names: {simulation}")
        for check in checks:
            print(f"  {_sentence(check)}")
    return 0 if all(check.holds for check in checks) else 1


def _sentence(check: AACheck) -> str:
    interval = f"95 % interval {check.low:.1%} to {check.high:.1%}"
    verdict = f"{'holds' if check.holds else 'does NOT hold'} (at most {check.allowed})"
    if check.deviation == 0:
        verdict = "but its seeds are all equal here, so this shows nothing"
    return (
        f"{check.seeds} seeds, {check.name}, against {check.against}: called different {check.different} of "
        f"{check.repeats} times, {check.rate:.1%}; {interval}; {verdict}"
    )


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        counts = []
    if not counts or min(counts) < 2:
        raise SpecError(f"--seeds {text!r}: give counts of 2 or more, like 3,10")
    return counts
