"""What an experiment takes and gives, and the one rule that turns numbers into a verdict.

The rule. A finding is a measured interval [low, high] (95 % unless its name says otherwise; a point where nothing
is random) beside an expected one, which is the theorem's value with the tolerance it is tested to:

    confirmed      the measured interval lies in the expected one
    refuted        the two have no point in common
    inconclusive   anything else: the measurement is too coarse to tell, or failed (NaN)

An experiment is refuted if one of its findings is, confirmed if all are, inconclusive otherwise. A finding without
an expected interval is reported and has no say. Nothing else decides: no experiment writes its verdict itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tunewise.theory.bound import Mark

Verdict = Literal["confirmed", "refuted", "inconclusive"]
Scale = Literal["quick", "full"]


@dataclass(frozen=True)
class Settings:
    """How an experiment is run. The same settings give the same numbers, times apart."""

    seed: int = 0
    scale: Scale = "quick"
    """'quick' is seconds on one core, 'full' minutes: more runs, narrower intervals, larger sizes."""
    device: str = "cpu"

    def of(self, quick: int, full: int) -> int:
        """The one of the two numbers that belongs to the scale."""
        return quick if self.scale == "quick" else full


@dataclass(frozen=True)
class Finding:
    """One measured number beside what the theorem says it is.

    `expected` is the interval that confirms: the theorem's value with a tolerance, or a bound with an infinite
    end. None: reported only. `note` says in words what the theorem says, units, and where the tolerance is from.
    """

    what: str
    value: float
    low: float
    high: float
    expected: tuple[float, float] | None
    note: str = ""

    @property
    def verdict(self) -> Verdict | None:
        """By the module's rule; None where nothing is expected."""
        return None if self.expected is None else judge(self.low, self.high, self.expected)


def exactly(what: str, value: float, expected: tuple[float, float] | None, note: str = "") -> Finding:
    """A finding that no draw of anything can change: a count, a largest violation, an error of rounding."""
    return Finding(what, value, value, value, expected, note)


def judge(low: float, high: float, expected: tuple[float, float]) -> Verdict:
    """The module's rule for one finding.

    >>> judge(0.48, 0.52, (0.45, 0.55)), judge(0.40, 0.44, (0.45, 0.55)), judge(0.40, 0.60, (0.45, 0.55))
    ('confirmed', 'refuted', 'inconclusive')
    """
    least, most = expected
    if any(math.isnan(x) for x in (low, high, least, most)):
        return "inconclusive"
    if low > high or least > most:
        raise ValueError(f"an interval is the wrong way round: [{low}, {high}] against [{least}, {most}]")
    if high < least or low > most:
        return "refuted"
    return "confirmed" if least <= low and high <= most else "inconclusive"


def overall(findings: Sequence[Finding]) -> Verdict:
    """The module's rule for an experiment. Without a finding that has a say it is inconclusive."""
    said = [finding.verdict for finding in findings if finding.verdict is not None]
    if "refuted" in said:
        return "refuted"
    return "confirmed" if said and all(verdict == "confirmed" for verdict in said) else "inconclusive"


@dataclass(frozen=True)
class Curve:
    """A series of a plot. `low` and `high` are error bars, or empty; `theory` is drawn as a dashed line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    theory: bool = False

    def __post_init__(self) -> None:
        lengths = {len(self.x), len(self.y), *(len(end) for end in (self.low, self.high) if end)}
        if len(lengths) > 1 or bool(self.low) != bool(self.high):
            raise ValueError(f"curve {self.name!r}: x, y, low and high differ in length")


@dataclass(frozen=True)
class Plot:
    """Axes and the curves on them."""

    title: str
    x: str
    y: str
    curves: Sequence[Curve]
    log_x: bool = False
    log_y: bool = False
    caption: str = ""
    uprights: Sequence[tuple[str, float]] = ()
    """Named values of x drawn as vertical lines: a threshold of the theorem."""


@dataclass(frozen=True)
class Speedup:
    """How many times faster a run is in the batch than alone, measured in turns: mean and 95 % interval."""

    what: str
    ratio: float
    low: float
    high: float
    batch: int
    """Runs in the batch; the loop does `looped` of them with the same code."""
    looped: int
    rounds: int


@dataclass(frozen=True)
class Outcome:
    """What an experiment's `run` gives back."""

    findings: Sequence[Finding]
    plots: Sequence[Plot]
    words: Sequence[str] = ()
    """Sentences: what was done (sizes, draws, starts), and what follows from the numbers and what does not."""
    speedups: Sequence[Speedup] = ()


@dataclass(frozen=True)
class Statement:
    """A theorem and what its experiment is expected to show."""

    name: str
    """On the command line: 'random-factor'."""
    theorem: str
    """In a sentence or two, with its assumptions."""
    source: str
    """arXiv id and number."""
    mark: Mark
    expectation: str
    """One sentence, written before the experiment is run."""


@dataclass(frozen=True)
class Experiment:
    """A statement and the code that tests it."""

    statement: Statement
    run: Callable[[Settings], Outcome]

    @property
    def name(self) -> str:
        return self.statement.name


@dataclass(frozen=True)
class Result:
    """An experiment that was run. The verdict follows from the findings."""

    statement: Statement
    settings: Settings
    outcome: Outcome
    seconds: float
    versions: dict[str, str] = field(default_factory=dict)
    """'python', 'tunewise', 'torch', ... and 'device'."""

    @property
    def verdict(self) -> Verdict:
        return overall(self.outcome.findings)
