"""What an attempt at a run came to."""

from __future__ import annotations

from dataclasses import dataclass

from tunewise.store.records import RunRecord


@dataclass(frozen=True)
class Outcome:
    """The end of a run, as a policy is told it."""

    record: RunRecord
    seconds: float
    steps: int | None
    """Steps of this attempt: fewer than the run has where it was resumed; None where another process did the run."""

    @property
    def run_id(self) -> str:
        return self.record.id

    @property
    def status(self) -> str:
        return self.record.status

    @property
    def scores(self) -> str:
        """'accuracy 0.912 (validation 0.920)'; empty where there are none."""
        results = self.record.results
        if results is None:
            return ""
        test, validation = (split.metrics.get(results.metric) for split in (results.test, results.validation))
        shown = "" if validation is None else f" (validation {validation:.4g})"
        return "" if test is None else f"{results.metric} {test:.4g}{shown}"
