"""Which learning rates are tried: a grid with equal steps of the logarithm, and where it goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal


def first_rates(middle: float, factor: float, trials: int) -> list[float]:
    """`middle`, then alternately one step of `factor` above and below: for four trials m, m f, m / f, m f^2.

    The middle comes first, so that a search never does worse on validation than no search; above comes before below,
    because defaults are cautious and short runs want more.
    """
    steps = [(k + 1) // 2 * (1 if k % 2 else -1) for k in range(trials)]
    return [rounded(middle * factor**step) for step in steps]


def next_rate(tried: Mapping[float, float], factor: float) -> float:
    """Where a further trial goes, given the rates tried and their values (lower is better; infinite for a failure).

    From an edge of the grid one step outward; else into the wider of the two gaps beside the best rate, the better
    neighbour's where both are alike, at its middle on the logarithmic scale.
    """
    rates = sorted(tried)
    at = rates.index(best_rate(tried))
    if at == 0:
        return rounded(rates[0] / factor)
    if at == len(rates) - 1:
        return rounded(rates[-1] * factor)
    below, above = (math.log(rates[at] / rates[at - 1]), math.log(rates[at + 1] / rates[at]))
    downward = tried[rates[at - 1]] < tried[rates[at + 1]]
    if abs(below - above) > 0.1 * max(below, above):
        downward = below > above
    neighbour = rates[at - 1] if downward else rates[at + 1]
    return rounded(math.sqrt(rates[at] * neighbour))


def best_rate(tried: Mapping[float, float]) -> float:
    """The rate with the lowest value; of equal ones the first that was tried."""
    return min(tried, key=lambda rate: tried[rate])


def edge(tried: Mapping[float, float]) -> Literal["lowest", "highest"] | None:
    """At which end of the rates tried the best one lies; a neighbour that failed is a neighbour all the same."""
    best = best_rate(tried)
    if best == max(tried):
        return "highest"
    return "lowest" if best == min(tried) else None


def rounded(rate: float) -> float:
    """To three digits: what is written is what is run."""
    return float(f"{rate:.3g}")
