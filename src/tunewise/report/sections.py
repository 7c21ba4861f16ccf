"""The sections of the report between the comparison and the list of runs."""

from __future__ import annotations

from tunewise.pages.section import Section
from tunewise.report import gap_predictors_section, noise_section, tuning_section
from tunewise.report.data import ReportData


def build_sections(data: ReportData) -> list[Section]:
    """All sections that have something to show."""
    of_measures = []
    for measure in data.measures:
        section_data = data.section_data(measure)
        of_measures.append(measure.section(section_data) if section_data else None)
    sections = [
        noise_section.section(data),
        *of_measures,
        gap_predictors_section.section(data),
        tuning_section.section(data),
    ]
    return [section for section in sections if section is not None]
