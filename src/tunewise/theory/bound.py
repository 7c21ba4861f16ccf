"""A number from a theorem, with its units, assumptions and source."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

Mark = Literal["text", "fixed", "derived", "form"]

MARKS: dict[Mark, str] = {
    "text": "as in the paper",
    "fixed": "the paper's printed formula is wrong, this is the corrected one",
    "derived": "not in a paper, proved in the docstring",
    "form": "the form is known, a constant is not",
}


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What a theorem says in numbers: `statement` with `value` in it, under `assumptions`.

    Attributes:
        value: The number; an `int` for a count, `inf` beyond the range of floats.
        units: "loss", "parameters", "rank", ...
        assumptions: What the theorem requires.
        mark: The relation to the paper's formula, a key of `MARKS`.
        source: arXiv id and number of the theorem.
        statement: The inequality, with "value" in it.
        log_value: Natural logarithm of value, finite also for an infinite `value`.
        ceiling: What holds without any theorem, e.g. gap <= M for a loss in [0, M].
        unmet: Assumptions that are known to fail for this model.

    Example:
        >>> gap = Bound(value=0.25, units="loss", mark="text", source="arXiv 2606.13767 Theorem 7", ceiling=1.0)
        >>> float(gap), gap.vacuous
        (0.25, False)
        >>> print(gap)
        0.25 loss (text; arXiv 2606.13767 Theorem 7)
    """

    value: float
    units: str
    assumptions: tuple[str, ...] = ()
    mark: Mark
    source: str
    statement: str = ""
    log_value: float = math.nan  # the default is the logarithm of value
    ceiling: float | None = None
    unmet: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if math.isnan(self.log_value):
            object.__setattr__(self, "log_value", math.log(self.value) if self.value > 0 else -math.inf)

    @property
    def vacuous(self) -> bool:
        """Whether the value is not below what holds without any theorem."""
        return self.ceiling is not None and self.value >= self.ceiling

    def with_unmet(self, *reasons: str) -> Bound:
        """The same number, with reasons why the theorem does not apply literally."""
        return replace(self, unmet=self.unmet + reasons)

    def __float__(self) -> float:
        return float(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __index__(self) -> int:
        if isinstance(self.value, int):
            return self.value
        raise TypeError(f"{self.value} {self.units} is not a whole number")

    def __add__(self, other: Bound) -> Bound:
        """The sum of two bounds in the same units: both lists of assumptions, the weaker mark."""
        if not isinstance(other, Bound):
            return NotImplemented
        if self.units != other.units:
            raise TypeError(f"a bound in {self.units!r} and one in {other.units!r} can't be added")
        weakest_last = list(MARKS)
        ceilings = [c for c in (self.ceiling, other.ceiling) if c is not None]
        return Bound(
            value=self.value + other.value,
            units=self.units,
            assumptions=tuple(dict.fromkeys(self.assumptions + other.assumptions)),
            mark=max(self.mark, other.mark, key=weakest_last.index),
            source=self.source if self.source == other.source else f"{self.source} + {other.source}",
            statement="; ".join(filter(None, (self.statement, other.statement))),
            log_value=_log_add(self.log_value, other.log_value),
            ceiling=max(ceilings, default=None),
            unmet=tuple(dict.fromkeys(self.unmet + other.unmet)),
        )

    def __str__(self) -> str:
        if isinstance(self.value, int):
            number = str(self.value)
        else:
            number = f"e^{self.log_value:.4g}" if math.isinf(self.value) else f"{self.value:.4g}"
        text = f"{number} {self.units} ({self.mark}; {self.source})"
        return f"{text}, assumptions not met: {'; '.join(self.unmet)}" if self.unmet else text


def _log_add(x: float, y: float) -> float:
    """log(e^x + e^y)."""
    low, high = sorted((x, y))
    return high if math.isinf(low) else high + math.log1p(math.exp(low - high))
