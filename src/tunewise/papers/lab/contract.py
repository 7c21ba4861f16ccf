"""The parts of an experiment, and the one rule that turns numbers into a verdict.

A finding is a measured interval [low, high] (95 %, or a point where nothing is random) beside an expected interval:
the theorem's value with the tolerance of the test.

    confirmed      the measured interval lies in the expected interval
    refuted        the two intervals have no point in common
    inconclusive   anything else, a failed measurement (NaN) included

An experiment is refuted if any finding is refuted, confirmed if all findings are confirmed, else inconclusive. A
finding without an expected interval is only reported. No experiment sets its verdict itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from tunewise.advise.statistics import mean_interval

Verdict = Literal["confirmed", "refuted", "inconclusive"]
Range = tuple[float, float]


@dataclass(frozen=True)
class LabSettings:
    """How an experiment runs. The same settings give the same numbers."""

    seed: int = 0
    scale: Literal["quick", "full"] = "quick"
    """quick: seconds on one core. full: minutes, with more runs and narrower intervals."""

    def choose(self, quick: int, full: int) -> int:
        """The number for this scale."""
        return quick if self.scale == "quick" else full


@dataclass(frozen=True)
class Finding:
    """One measured number beside the theorem's value."""

    what: str
    value: float
    low: float
    high: float
    expected: Range | None
    """The interval that confirms. None: the number is only reported."""
    note: str = ""

    @classmethod
    def exact(cls, what: str, value: float, expected: Range | None, note: str = "") -> Finding:
        """Without a random error: a count, a largest violation, a rounding error."""
        return cls(what, value, value, value, expected, note)

    @classmethod
    def mean(cls, what: str, values: Sequence[float], expected: Range | None, note: str = "") -> Finding:
        """The mean over independent repetitions with its t interval; NaN for fewer than two finite values."""
        if not values or not all(math.isfinite(v) for v in values):
            return cls(what, math.nan, math.nan, math.nan, expected, note)
        mean = mean_interval(list(values), 0.95)
        low, high = (math.nan if end is None else end for end in (mean.low, mean.high))
        return cls(what, mean.mean, low, high, expected, note)

    @property
    def verdict(self) -> Verdict | None:
        return None if self.expected is None else judge(self.low, self.high, self.expected)


def judge(low: float, high: float, expected: Range) -> Verdict:
    """The verdict of one finding.

    >>> judge(0.48, 0.52, (0.45, 0.55)), judge(0.40, 0.44, (0.45, 0.55)), judge(0.40, 0.60, (0.45, 0.55))
    ('confirmed', 'refuted', 'inconclusive')
    """
    least, most = expected
    if any(math.isnan(x) for x in (low, high, least, most)):
        return "inconclusive"
    if low > high or least > most:
        raise ValueError(f"the ends of an interval are in the wrong order: [{low}, {high}] or [{least}, {most}]")
    if high < least or low > most:
        return "refuted"
    return "confirmed" if least <= low and high <= most else "inconclusive"


def overall(findings: Sequence[Finding]) -> Verdict:
    """The verdict of an experiment."""
    verdicts = [finding.verdict for finding in findings if finding.verdict is not None]
    if "refuted" in verdicts:
        return "refuted"
    return "confirmed" if verdicts and all(verdict == "confirmed" for verdict in verdicts) else "inconclusive"


def log_log_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least-squares slope of log y against log x: the exponent of a power law.

    >>> round(log_log_slope([1, 2, 4], [3, 12, 48]), 12)
    2.0
    """
    u, v = [math.log(a) for a in x], [math.log(b) for b in y]
    mean_u, mean_v = fmean(u), fmean(v)
    return sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v)) / sum((a - mean_u) ** 2 for a in u)


def log_log_slopes(x: Sequence[float], rows: Sequence[Sequence[float]]) -> list[float]:
    """The slope of every repetition (a row of y each): noise common to a row does not count as independent."""
    return [log_log_slope(x, y) for y in rows]


@dataclass(frozen=True)
class PlotCurve:
    """A series of a plot. `low` and `high` are error bars, or empty."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False

    def __post_init__(self) -> None:
        lengths = {len(self.x), len(self.y), *(len(end) for end in (self.low, self.high) if end)}
        if len(lengths) > 1 or bool(self.low) != bool(self.high):
            raise ValueError(f"curve {self.name!r}: x, y, low and high differ in length")

    @classmethod
    def mean(cls, name: str, x: Sequence[float], rows: Sequence[Sequence[float]]) -> PlotCurve:
        """Means over repetitions (a row of y each) with 95 % t intervals."""
        means = [mean_interval(list(column), 0.95) for column in zip(*rows)]
        low = [m.mean if m.low is None else m.low for m in means]
        high = [m.mean if m.high is None else m.high for m in means]
        return cls(name, list(x), [m.mean for m in means], low, high)

    @classmethod
    def theory(cls, name: str, x: Sequence[float], y: Sequence[float]) -> PlotCurve:
        """The theorem's prediction, drawn as a dashed line."""
        return cls(name, list(x), list(y), dashed=True)


@dataclass(frozen=True)
class Plot:
    """Axes and the curves on them."""

    title: str
    x: str
    y: str
    curves: Sequence[PlotCurve]
    log: Literal["", "x", "y", "xy"] = ""
    """The axes with a log scale."""
    caption: str = ""
    thresholds: Sequence[tuple[str, float]] = ()
    """Named values of x, drawn as vertical lines."""


@dataclass(frozen=True)
class Measurement:
    """What `run` of an experiment returns."""

    findings: Sequence[Finding]
    plots: Sequence[Plot]
    notes: Sequence[str] = ()
    """Sentences: the sizes and draws, and what follows from the numbers and what does not."""
