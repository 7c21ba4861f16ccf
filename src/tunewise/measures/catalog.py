"""The measures of a finished run, as data: what `--measures` may name. A new measure is one file and a row here."""

from __future__ import annotations

from dataclasses import dataclass

from tunewise.errors import SpecError, nearest


@dataclass(frozen=True)
class Measure:
    """One row of the list."""

    name: str
    title: str
    where: str
    """`module:function` of its `contract.Compute`; imported when the measure is asked for."""
    version: int = 1
    """Raised when the same run would give other numbers, so that old results are made again."""
    needs_trajectory: bool = False
    """Whether it needs the snapshots that a run keeps only where asked to."""
    default: bool = False
    """Whether a comparison makes it unless told otherwise: only what costs little next to training."""


_ROWS: tuple[Measure, ...] = (
    Measure("forgetting", "forgetting", "tunewise.measures.forgetting:forgetting", default=True),
)

MEASURES: dict[str, Measure] = {measure.name: measure for measure in _ROWS}


def get_measure(name: str) -> Measure:
    """Raises `SpecError` with the nearest name."""
    if name not in MEASURES:
        raise SpecError(f"unknown measure {name!r}{nearest(name, MEASURES)}")
    return MEASURES[name]


def default_measures() -> list[str]:
    """Names of those that every comparison makes."""
    return [measure.name for measure in MEASURES.values() if measure.default]
