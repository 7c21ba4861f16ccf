"""Who is first, second and third in a column, and who can't be told apart.

A place is shared, `1=`, as in a race: the leader of a group stands first together with everyone who is not shown to
be behind it, and the next place starts after them. Three seeds often tell nobody apart; the marks then say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tunewise.advise.pooled_variance import compare_to_best, estimate_variances
from tunewise.store.records import CostRecord

LAST_MARKED = 3


@dataclass(frozen=True)
class Place:
    rank: int
    shared: bool

    def __str__(self) -> str:
        return f"{self.rank}=" if self.shared else str(self.rank)


def places(order: list[str], tied: Callable[[str, list[str]], set[str]]) -> dict[str, Place]:
    """Places of the names in `order`, best first; `tied(leader, others)` are those not told apart from the leader.
    Names behind the third place get none, and nobody does where there is only one."""
    if len(order) < 2:
        return {}
    given: dict[str, Place] = {}
    left = list(order)
    while left and len(given) < LAST_MARKED:
        leader, others = left[0], left[1:]
        group = [leader, *(n for n in others if n in tied(leader, others))] if others else [leader]
        given |= dict.fromkeys(group, Place(len(given) + 1, len(group) > 1))
        left = [name for name in left if name not in group]
    return given


def by_seed(
    scores: Mapping[str, Mapping[int, float]], higher_is_better: bool, resolution: float = 0.0
) -> dict[str, Place]:
    """Places by mean over seeds. Tied: not shown to be worse than the leader by `compare_to_best` at 95 %. A
    method that scatters far more than the others has no place unless its mean is the best: nothing would be shown of
    it, and nobody told apart from it."""
    means = {name: sum(seeds.values()) / len(seeds) for name, seeds in scores.items() if seeds}
    field = {name: scores[name] for name in means}
    order = sorted(means, key=lambda name: (-means[name] if higher_is_better else means[name], name))
    noise = estimate_variances(field, resolution)
    outliers = noise.outliers if noise else ()
    order = [name for i, name in enumerate(order) if i == 0 or name not in outliers]

    def tied(leader: str, others: list[str]) -> set[str]:
        found = compare_to_best(field, leader, higher_is_better, resolution=resolution)
        return {c.name for c in found if c.verdict != "worse"}

    return places(order, tied)


def by_step_time(costs: Mapping[str, CostRecord]) -> dict[str, Place]:
    """Places by step time. Tied: the intervals of the ratios to the frozen floor overlap."""
    order = sorted(costs, key=lambda name: (costs[name].ratio_to_floor, name))

    def tied(leader: str, others: list[str]) -> set[str]:
        return {name for name in others if costs[name].ratio_low <= costs[leader].ratio_high}

    return places(order, tied)


def by_size(values: Mapping[str, int | None], slack: float = 1.0) -> dict[str, Place]:
    """Places by a size, smallest first. Tied: at most `slack` times the leader's."""
    known = {name: value for name, value in values.items() if value is not None}
    order = sorted(known, key=lambda name: (known[name], name))

    def tied(leader: str, others: list[str]) -> set[str]:
        return {name for name in others if known[name] <= slack * known[leader]}

    return places(order, tied)
