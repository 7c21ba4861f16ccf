"""What a measure of a finished run is: a function from the run to plain data."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

from tunewise.measures.catalog import Measure
from tunewise.measures.finished import FinishedRun


class Compute(Protocol):
    """A measure takes a `FinishedRun` and returns what JSON holds (no NaN); it is kept beside the run's record as
    `measures/NAME.json` and read by the report. It never changes the run: not its record, its files, its models.

    `check` is called now and then and raises where a stop was asked for. Raises `MeasureError`, one line, where the
    run is not of a kind that can be measured so (full fine-tuning has no factors, an image model no vocabulary).
    A measure with a settings class also takes `settings`, an instance of it; the result is kept with them, and made
    again where they are others. One that does part of its work only where there is a trajectory says so by
    `waits_for_trajectory: true` in its values.
    """

    def __call__(self, run: FinishedRun, check: Callable[[], None], **settings: Any) -> dict[str, Any]: ...


def load_measure(measure: Measure) -> Compute:
    """The function behind a row of the catalog."""
    module, function = measure.where.split(":")
    compute: Compute = getattr(import_module(module), function)
    return compute
