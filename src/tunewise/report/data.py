"""What a further section of the report is, and what it is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tunewise.advise.recommend import Recommendation
from tunewise.advise.summary import MethodSummary
from tunewise.pages import palette
from tunewise.pages.palette import Mark
from tunewise.spec import StudySpec
from tunewise.store.records import CostReport, Measured, RunRecord, TuningReport


@dataclass(frozen=True)
class ReportData:
    """Everything that a report is made from."""

    comparison: StudySpec
    records: Sequence[RunRecord]
    histories: Mapping[str, Sequence[dict[str, Any]]]
    """Lines of `history.jsonl`, by run id; it may lack runs."""
    costs: CostReport | None
    summaries: Sequence[MethodSummary]
    recommendation: Recommendation | None
    """None where nothing can be recommended."""
    folders: Mapping[str, str]
    """A run's folder, relative to the report's, by run id; it may lack runs."""
    measured: Mapping[str, Mapping[str, Measured]] = field(default_factory=dict)
    """By the measure's name, then by run id."""
    tuning: TuningReport | None = None

    @cached_property
    def marks(self) -> dict[str, Mark]:
        """Colour, dash and symbol of each method's label."""
        return palette.marks([m.label for m in self.comparison.methods] + [s.label for s in self.summaries])

    def values(self, measure: str) -> list[tuple[RunRecord, dict[str, Any]]]:
        """The finished runs that the measure found something in, with what it found, in the report's order."""
        made = self.measured.get(measure, {})
        return [
            (r, found)
            for r in self.records
            if r.status == "done" and r.id in made and (found := made[r.id].values) is not None
        ]

    def missing(self, measure: str) -> list[str]:
        """Why there is nothing for some methods: one sentence for each reason, with the methods' names."""
        reasons: dict[str, list[str]] = {}
        for record in self.records:
            known = self.measured.get(measure, {}).get(record.id)
            if known is not None and known.error:
                names = reasons.setdefault(known.error, [])
                if record.spec.method.label not in names:
                    names.append(record.spec.method.label)
        return [f"{', '.join(names)}: {reason}." for reason, names in reasons.items()]
