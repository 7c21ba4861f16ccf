"""The contract of a measure: what it computes, its typed result, its settings and its report section."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from tunewise.errors import SpecError
from tunewise.measures.finished import Check, FinishedRun
from tunewise.pages.palette import Mark
from tunewise.pages.section import Section
from tunewise.spec import parse
from tunewise.store.records import RunRecord


class Values(BaseModel):
    """A part of a result: what JSON can hold, so neither NaN nor infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MeasureResult(Values):
    """Base class of the results of measures."""


class MeasureSettings(BaseModel):
    """Base class of the settings of measures; itself the settings of a measure that has none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Result = TypeVar("Result", bound=MeasureResult)


@dataclass(frozen=True)
class SectionData(Generic[Result]):
    """What a measure's report section is made from."""

    runs: Sequence[tuple[RunRecord, Result]]
    """Finished runs with their results, in the order of the report; at least one."""
    marks: Mapping[str, Mark]
    """Colour, marker and dash of each method, by label."""
    missing: Sequence[str] = ()
    """One sentence for each reason why some methods have no result."""
    highlighted: Sequence[str] = ()
    """Labels of the recommended method and of the reference."""

    @property
    def first(self) -> Result:
        return self.runs[0][1]

    @property
    def labels(self) -> list[str]:
        """Labels of the methods, each once."""
        return list(dict.fromkeys(record.spec.method.label for record, _ in self.runs))

    def of_method(self, label: str) -> list[Result]:
        """The results of one method, a result for each seed."""
        return [result for record, result in self.runs if record.spec.method.label == label]

    def by_seed(self, value: Callable[[Result], float | None]) -> dict[str, dict[int, float]]:
        """`value` of each result, by method and seed; results for which it is None are left out."""
        found: dict[str, dict[int, float]] = {}
        for record, result in self.runs:
            number = value(result)
            if number is not None:
                found.setdefault(record.spec.method.label, {})[record.spec.seed] = number
        return found


@dataclass(frozen=True)
class Measure(Generic[Result]):
    """A measure of finished runs, in one file or one folder.

    The file registers the measure when it is imported; `--measures NAME` and specs then accept its name, the result is
    kept as `measures/NAME.json` in each run's folder, and the report shows its section.

    Args:
        name: how specs name the measure.
        title: the measure in messages: "measuring TITLE of lora, seed 0".
        compute: takes the finished run, the settings and `check`, and returns the result. It leaves the run's models
            bit for bit as they were. `check` is to be called every few seconds; it raises where the user has asked to
            stop. Raises `MeasureError`, one line, for a run that the measure does not apply to.
        result: the class of the result.
        section: takes `SectionData` and returns the report section, or None where there is nothing to show.
        settings: the class of the settings.
        version: raised by one when the same run would give other numbers; results of older versions are computed anew.
        first_seed_only: whether only the first seed of each method is measured.

    Example:
        >>> from tunewise.measures.base import Measure, MeasureResult
        >>> from tunewise.pages.section import Section, Table
        >>> from tunewise.registry import MEASURES
        >>> class StepsResult(MeasureResult):
        ...     steps: int
        >>> def compute(run, settings, check):
        ...     examples = run.record.data.train
        ...     return StepsResult(steps=-(-examples // run.spec.training.batch_size) * run.spec.training.epochs)
        >>> def section(data):
        ...     rows = [[record.spec.method.label, str(result.steps)] for record, result in data.runs]
        ...     return Section("steps", "Steps", tables=[Table(["method", "steps"], rows)])
        >>> measure = MEASURES.register("steps", Measure("steps", "steps", compute, StepsResult, section))
        >>> MEASURES.check("steps")
        'steps'
        >>> MEASURES.unregister("steps")
    """

    name: str
    title: str
    compute: Callable[[FinishedRun, Any, Check], Result]
    result: type[Result]
    section: Callable[[SectionData[Result]], Section | None]
    settings: type[MeasureSettings] = MeasureSettings
    version: int = 1
    first_seed_only: bool = False

    def parse_settings(self, content: Mapping[str, object]) -> MeasureSettings:
        """The settings, defaults filled in. Raises `SpecError` for an unknown key or a wrong value."""
        if content and self.settings is MeasureSettings:
            raise SpecError(f"measure {self.name!r} has no settings; remove it from measure_settings")
        return parse(self.settings, content, source=f"measure {self.name}")
