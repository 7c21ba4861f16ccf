"""What a report is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tunewise.advise.recommend import Recommendation
from tunewise.advise.summary import MethodSummary
from tunewise.measures.base import Measure, MeasureResult, SectionData
from tunewise.measures.collect import Collected, result_of
from tunewise.pages import palette
from tunewise.pages.palette import Mark
from tunewise.registry import MEASURES
from tunewise.report.curves import History
from tunewise.spec import StudySpec
from tunewise.store.answers import Answer
from tunewise.store.records import CostReport, RunRecord, TuningReport


@dataclass(frozen=True)
class ReportData:
    """Everything that a report is made from."""

    comparison: StudySpec
    records: Sequence[RunRecord]
    histories: Mapping[str, History]
    """Lines of `history.jsonl`, by run id; it may lack runs."""
    costs: CostReport | None
    summaries: Sequence[MethodSummary]
    recommendation: Recommendation | None
    """None where nothing can be recommended."""
    folders: Mapping[str, str]
    """A run's folder, relative to the report's, by run id; it may lack runs."""
    measured: Collected = field(default_factory=dict)
    tuning: TuningReport | None = None
    answers: Mapping[str, Sequence[Answer]] = field(default_factory=dict)
    """Generated answers to test items, by run id; of runs that generate."""

    @cached_property
    def marks(self) -> dict[str, Mark]:
        """Colour, dash and symbol of each method's label."""
        return palette.marks([m.label for m in self.comparison.methods] + [s.label for s in self.summaries])

    @property
    def measures(self) -> list[Measure[MeasureResult]]:
        """Those that were computed, in the order of the registry."""
        return [MEASURES.get(name) for name in MEASURES.names() if self.measured.get(name)]

    def section_data(self, measure: Measure[MeasureResult]) -> SectionData[MeasureResult] | None:
        """None where no run has a result."""
        measured = self.measured.get(measure.name, {})
        runs: list[tuple[RunRecord, MeasureResult]] = []
        reasons: dict[str, dict[str, None]] = {}
        for record in self.records:
            found = measured.get(record.id)
            if found is None:
                continue
            if found.error:
                reasons.setdefault(found.error, {})[record.spec.method.label] = None
            result = result_of(measure, found)
            if result is not None and record.status == "done":
                runs.append((record, result))
        missing = [f"{', '.join(labels)}: {reason}." for reason, labels in reasons.items()]
        choice = self.recommendation.choice if self.recommendation else None
        highlighted = [choice] if choice else []
        highlighted += [summary.reference for summary in self.summaries[:1]]
        return SectionData(runs, self.marks, missing, highlighted) if runs else None
