"""The decision in plain sentences: what to use, how sure that is, and what would change it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunewise.advise.decision import (
    ROUNDING,
    Decision,
    Limits,
    Standing,
    beyond,
    decide,
    item_noise_of,
    lost_runs,
    mean_of,
    step_of,
)
from tunewise.advise.pareto import cheaper_by
from tunewise.advise.statistics import against_leader, against_reference, item_standard_error, seeds_needed
from tunewise.advise.summary import MethodSummary


@dataclass(frozen=True)
class Recommendation:
    """`sentences` say what to use and how sure that is; `would_change` what would lead to another answer."""

    choice: str
    sentences: list[str]
    runner_up: str | None
    pareto: list[str]
    would_change: list[str]
    evidence: Literal["enough", "thin"]


def recommend(summaries: Sequence[MethodSummary], limits: Limits | None = None) -> Recommendation:
    """The method to use, by the rule above, in words. Raises what `decide` raises."""
    limits = limits or Limits()
    made = decide(summaries, limits)
    doubts = _doubts(made, summaries)
    sentences = [_what(made), _noise(made)]
    if doubts:
        sentences.append(f"The evidence is thin: {'; '.join(doubts)}.")
    return Recommendation(
        choice=made.choice.label,
        sentences=sentences,
        runner_up=made.runner_up.label if made.runner_up else None,
        pareto=made.pareto,
        would_change=[*_more_evidence(made), *_other_aims(made, summaries, limits)],
        evidence="thin" if doubts else "enough",
    )


def _what(made: Decision) -> str:
    choice, best = made.choice, made.best
    score = f"test {choice.metric.replace('_', ' ')}"
    if not made.standings:
        return f"Use {choice.label}, the only method to choose from: its {score} is {_percent(choice)}."
    if at := made.standing(choice):
        the_best = f"the best ({best.label}, {_percent(best)})"
        if at.is_worse:
            distance = f"{_points(at.deficit)} below {the_best}, a real loss, but one within your tolerance"
        elif at.deficit < 0.0005:
            distance = f"level with {the_best}"
        else:
            distance = f"{_points(at.deficit)} below {the_best}, which is within the noise"
        why = cheaper_by(choice, best)
        return (
            f"Use {choice.label}: its mean {score} of {_percent(choice)} is {distance}{', and ' + why if why else ''}."
        )
    start = f"Use {choice.label}: it has the highest mean {score}, {_percent(choice)},"
    close = ", ".join(s.method.label for s in made.standings if s.as_good)
    if close:
        return f"{start} and of those that come as close as the noise ({close}) none is cheaper."
    if all(s.is_worse for s in made.standings):
        return f"{start} and every other method is lower by more than noise explains."
    after = min(made.standings, key=lambda s: s.deficit)
    return (
        f"{start} and no other method comes close enough to be as good (the next, {after.method.label}, is "
        f"{_points(after.deficit)} lower)."
    )


def _noise(made: Decision) -> str:
    best, parts = made.best, []
    if best.test_items:
        parts.append(
            f"the test set has {best.test_items} items, so each score is uncertain by about "
            f"±{_points(1.96 * item_noise_of(best))}"
        )
    at = made.standing(made.choice) or made.standing(made.runner_up)
    if len(best.seeds) == 1:
        parts.append("one seed says nothing of the luck in training")
    elif at and at.comparison.low is not None and at.comparison.high is not None:
        pair = f"{at.method.label} and {best.label}"
        if at.is_worse:
            least, most = f"{-100 * at.comparison.high:.1f}", _points(-at.comparison.low)
            size = most if most.startswith(f"{least} ") else f"{least} to {most}"
            parts.append(f"going by {_seeds(at)} the difference between {pair} is {size}")
        else:
            parts.append(
                f"with {_seeds(at)} a true difference of up to {_points(at.comparison.missed or 0)} between "
                f"{pair} could have gone unseen"
            )
    sentence = "; ".join(parts) or "how noisy these scores are is not known"
    return f"{sentence[0].upper()}{sentence[1:]}."


def _doubts(made: Decision, summaries: Sequence[MethodSummary]) -> list[str]:
    """Why the evidence is thin (step 5 of the rule); empty where it is not."""
    choice, best = made.choice, made.best
    doubts = []
    seeds = min(len(choice.seeds), len(best.seeds))
    if seeds < 3:
        doubts.append(f"{seeds} seed{'s' if seeds > 1 else ''} finished, and 3 are the least")
    if lost := [f"{s.label}: {lost_runs(s)}" for s in summaries if s.missing]:
        doubts.append(f"runs are missing ({', '.join(lost)})")
    if not made.standings:
        doubts.append(f"{choice.label} was compared with no other method")
    head = next((s for s in summaries if s.name == "head" and s.test_metric), None)
    if head and made.standings:
        scores = {s.label: s.metric_by_seed for s in summaries if s.test_metric}
        compared = against_reference(scores, head.label, True, resolution=step_of(head))
        better = {c.name for c in compared if c.verdict == "better"}
        if choice is not head and choice.label not in better:
            doubts.append(f"{choice.label} is not clearly better than training the head alone")
        elif choice is head and not better:
            doubts.append("no method is clearly better than training the head alone")
    chance = best.chance
    if chance is not None and best.test_items:
        noise = 1.96 * item_standard_error(chance, best.test_items)
        if mean_of(best) - chance <= noise:
            doubts.append(f"even the best score is near chance ({100 * chance:.1f} %)")
    cheaper = [s for s in made.standings if not s.as_good and not s.is_worse and cheaper_by(s.method, choice)]
    if cheaper:
        at = min(cheaper, key=lambda s: s.deficit)
        doubts.append(
            f"{at.method.label} is cheaper and {_points(at.deficit)} below {best.label} on average, too much "
            f"to give away, yet it is not shown to be worse by {_seeds(at)}"
        )
    floor, floor_name = (mean_of(head), head.label) if head and head is not best else (chance, "chance")
    chosen = made.standing(choice)
    if chosen and chosen.comparison.low is not None and floor is not None and choice is not head:
        most = -chosen.comparison.low
        if 0 < mean_of(best) - floor < 2 * most:
            doubts.append(
                f"{choice.label} could be up to {_points(most)} below {best.label}, more than half of what "
                f"that gains over {floor_name}"
            )
    return doubts


def _more_evidence(made: Decision) -> list[str]:
    """What more runs or more test items would settle."""
    best, changes = made.best, []
    unsettled = [s for s in made.standings if not s.is_worse]
    at = made.standing(made.choice) or min(unsettled, key=lambda s: s.deficit, default=None)
    if len(best.seeds) == 1:
        changes.append("More seeds: run at least 3, so that luck in training can be told from merit.")
    elif at and at.comparison.difference and at.comparison.difference.n > 1 and made.margin > 0:
        a, b = best.metric_by_seed, at.method.metric_by_seed
        size = max(made.margin, at.deficit)
        if more := seeds_needed([a[s] - b[s] for s in sorted(a.keys() & b.keys())], size):
            changes.append(
                f"More seeds: about {more} more would show a difference of {_points(size)} between "
                f"{best.label} and {at.method.label}, if there is one."
            )
    if best.test_items and unsettled and item_noise_of(best) >= made.margin - ROUNDING:
        changes.append(
            f"A larger test set: {4 * best.test_items} items instead of {best.test_items} would halve the "
            f"noise of each score."
        )
    return changes


def _other_aims(made: Decision, summaries: Sequence[MethodSummary], limits: Limits) -> list[str]:
    """What other limits, or another aim than the score, would lead to."""
    choice, best, changes = made.choice, made.best, []
    for method in summaries:
        if method.test_metric is None or method in made.entrants:
            continue
        if reason := beyond(method, limits):
            if mean_of(method) > mean_of(best):
                changes.append(f"A wider limit: {reason}, and reached {_percent(method)}.")
            continue
        lost = f" ({lost_runs(method)})" if method.missing else ""
        changes.append(f"The missing runs of {method.label}{lost}: without them it took no part.")
    cheaper = [s for s in made.standings if not s.as_good and cheaper_by(s.method, choice)]
    if cheaper := [s for s in cheaper if s.method.name != "head"]:
        at = min(cheaper, key=lambda s: s.deficit)
        changes.append(
            f"A tolerance of {_points(math.ceil(1000 * at.deficit) / 1000)}: then {at.method.label} would be "
            f"close enough; {cheaper_by(at.method, choice)}."
        )
    gaps = {s.label: s.gap_by_seed for s in made.entrants}
    smaller = {c.name for c in against_leader(gaps, choice.label, False) if c.verdict == "better"}
    for s in (best, *(at.method for at in made.standings if at.as_good)):
        if s.label in smaller and s.gap and choice.gap:
            changes.append(
                f"If the gap between test and train loss matters most: {s.label} has {s.gap.mean:.3f} nats, "
                f"{choice.label} {choice.gap.mean:.3f}."
            )
    if len(made.entrants) > 1 and any(s.cost is None for s in made.entrants):
        changes.append("Measured costs: not every method has them, so trainable parameters stood for cost.")
    return changes


def _percent(method: MethodSummary) -> str:
    return f"{100 * mean_of(method):.1f} %"


def _points(difference: float) -> str:
    return f"{100 * difference:.1f} points"


def _seeds(standing: Standing) -> str:
    count = standing.comparison.difference.n if standing.comparison.difference else 0
    return f"{count} seed{'' if count == 1 else 's'}"
