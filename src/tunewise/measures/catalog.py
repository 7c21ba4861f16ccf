"""The measures of a finished run, as data: what `--measures` may name. A new measure is one file and a row here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from pydantic import BaseModel

from tunewise.errors import SpecError, suggest_nearest


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
    settings: str = ""
    """`module:class` of what can be set about it (`measures.settings`); empty where nothing can."""
    one_seed: bool = False
    """Whether it is made of each method's first seed only: a picture rather than a figure with an interval."""

    @property
    def settings_class(self) -> type[BaseModel] | None:
        """What its settings are checked against; handed to the measure as `settings=`."""
        if not self.settings:
            return None
        module, name = self.settings.split(":")
        found: type[BaseModel] = getattr(import_module(module), name)
        return found


_ROWS: tuple[Measure, ...] = (
    Measure("forgetting", "forgetting", "tunewise.measures.forgetting.compute:forgetting", default=True),
    Measure("spectrum", "spectra", "tunewise.measures.spectrum.compute:spectrum", default=True),
    Measure(
        "intruders",
        "intruder dimensions",
        "tunewise.measures.intruders.compute:intruders",
        default=True,
        settings="tunewise.measures.settings:IntruderSettings",
    ),
    Measure("bounds", "bounds of the gap", "tunewise.measures.bounds.compute:bounds", default=True),
    Measure("alignment", "alignment with the first gradient", "tunewise.measures.alignment.compute:alignment"),
    Measure("laziness", "laziness", "tunewise.measures.laziness.compute:laziness"),
    Measure(
        "sharpness",
        "sharpness",
        "tunewise.measures.sharpness.compute:sharpness",
        settings="tunewise.measures.settings:SharpnessSettings",
    ),
    Measure(
        "landscape",
        "loss landscape",
        "tunewise.measures.landscape.compute:landscape",
        settings="tunewise.measures.settings:LandscapeSettings",
        one_seed=True,
    ),
)

MEASURES: dict[str, Measure] = {measure.name: measure for measure in _ROWS}
assert len(MEASURES) == len(_ROWS)


def get_measure(name: str) -> Measure:
    """Raises `SpecError` with the nearest name."""
    if name not in MEASURES:
        raise SpecError(f"unknown measure {name!r}{suggest_nearest(name, MEASURES)}")
    return MEASURES[name]


def default_measures() -> list[str]:
    """Names of those that every comparison makes."""
    return [measure.name for measure in MEASURES.values() if measure.default]
