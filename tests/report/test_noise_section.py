"""How sure the differences are: seeds and items."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tunewise.advise.items import ItemComparison
from tunewise.report.data import ReportData
from tunewise.report.noise_section import section


def data_of(made: Any, **changes: Any) -> ReportData:
    return replace(made.data, **changes)


def row_of(found: Any, method: str, grid: int = 0) -> dict[str, str]:
    made = found.tables[grid]
    return next(dict(zip(made.columns, row)) for row in made.rows if row[0] == method)


def test_every_method_but_the_reference_has_a_row_with_the_tables_own_interval(whole: Any) -> None:
    found = section(data_of(whole))
    assert found is not None
    assert [row[0] for row in found.tables[0].rows] == [s.label for s in whole.summaries if not s.is_reference]
    summary = next(s for s in whole.summaries if s.label == "cla")
    compared = summary.metric_comparison
    shown = row_of(found, "cla")
    assert shown["difference"].replace("−", "-") == f"{100 * compared.difference.mean:+.2f}"
    assert shown["over seeds, 95 %"].replace("−", "-") == f"{100 * compared.low:+.2f} to {100 * compared.high:+.2f}"
    assert shown["unseen up to"] == f"{50 * (compared.high - compared.low):.2f}"
    assert shown["over test items, 95 %"] == "–"


def test_what_the_items_alone_could_explain_is_said(whole: Any) -> None:
    wide = ItemComparison(0.01, -0.02, 0.04, 0.4, 500, 3, "paired by item")
    summaries = [s if s.is_reference else replace(s, item_comparison=wide) for s in whole.summaries]
    told_apart = [
        s.label for s in summaries if s.metric_comparison and s.metric_comparison.verdict in ("better", "worse")
    ]
    found = section(data_of(whole, summaries=summaries))
    assert found is not None
    assert row_of(found, "cla")["over test items, 95 %"] == "−2.00 to +4.00"
    assert told_apart
    assert any(
        f"over seeds, but not over test items: {', '.join(told_apart)}." in note.replace("\n", " ")
        for note in found.notes
    )
    narrow = replace(wide, low=0.005)
    found = section(data_of(whole, summaries=[replace(s, item_comparison=narrow) for s in summaries]))
    assert found is not None
    assert not any("but not over test items" in note for note in found.notes)


@pytest.mark.parametrize("seeds", [1, 2])
def test_with_few_seeds_what_is_not_known_is_left_open(compared: Any, seeds: int) -> None:
    found = section(data_of(compared(seeds=seeds)))
    assert found is not None
    shown = row_of(found, "cla")
    assert (shown["over seeds, 95 %"] == "–") == (seeds == 1)


def test_a_single_method_has_no_such_section(compared: Any) -> None:
    assert section(data_of(compared(methods=("lora",)))) is None


def test_gaps_are_given_relative_to_the_references_with_fiellers_interval(whole: Any) -> None:
    found = section(data_of(whole))
    assert found is not None
    summary = next(s for s in whole.summaries if s.label == "cla")
    shown = row_of(found, "cla", 1)
    assert shown["× lora's"] == f"{summary.gap_ratio.mean:.2f}"
    assert shown["95 %"] == f"{summary.gap_ratio.low:.2f} to {summary.gap_ratio.high:.2f}"
    assert shown[""] in ("smaller", "larger", "no difference seen")
