"""The further sections of the report: what each measure has to show. A new one is one file and a row in `SECTIONS`.

A section is a function from `ReportData` to a `Section`, or to None where there is nothing to show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tunewise.measures.alignment import section as alignment_section
from tunewise.measures.bounds import section as bounds_section
from tunewise.measures.forgetting import section as forgetting_section
from tunewise.measures.intruders import section as intruders_section
from tunewise.measures.landscape import section as landscape_section
from tunewise.measures.laziness import section as laziness_section
from tunewise.measures.spectrum import section as spectrum_section
from tunewise.pages.section import Section
from tunewise.report import gap_predictors_section, noise_section, tuning_section
from tunewise.report.data import ReportData

SECTIONS: Sequence[Callable[[ReportData], Section | None]] = (
    noise_section.section,
    forgetting_section.section,
    spectrum_section.section,
    intruders_section.section,
    landscape_section.section,
    bounds_section.section,
    gap_predictors_section.section,
    alignment_section.section,
    laziness_section.section,
    tuning_section.section,
)
"""In the order of the page."""


def build_sections(data: ReportData) -> list[Section]:
    """All sections that have something to show."""
    return [section for make in SECTIONS if (section := make(data)) is not None]
