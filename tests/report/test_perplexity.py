"""A metric of which less is better, and which is no share, in the table, the figures and the words."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from tunewise.advise.recommend import recommend
from tunewise.advise.summary import summarise
from tunewise.number_format import score, score_difference
from tunewise.report import figures
from tunewise.report import table as formats
from tunewise.report.figures import Point
from tunewise.report.panels import cost_panels
from tunewise.report.report_page import render, run_columns
from tunewise.report.rows import build_table


@pytest.fixture(scope="module")
def perplexities(whole):
    """The comparison of `whole` as if it had been of language models: perplexity e^loss, no classes."""

    def changed(scores):
        return scores.model_copy(update={"metrics": {"perplexity": math.exp(10 * scores.loss), "token_accuracy": 0.5}})

    records = []
    for record in whole.records:
        parts = {part: changed(getattr(record.results, part)) for part in ("train", "validation", "test")}
        facts = {"metric": "perplexity", "lower_is_better": ["perplexity"], "confusion": None, **parts}
        results = record.results.model_copy(update=facts)
        data = record.data.model_copy(update={"labels": []})
        records.append(record.model_copy(update={"results": results, "data": data}))
    histories = {
        run: [
            {**line, "validation": {"loss": line["validation"]["loss"], "metrics": {"perplexity": 7.0}}}
            if "validation" in line
            else line
            for line in lines
        ]
        for run, lines in whole.histories.items()
    }
    summaries = summarise(records, whole.costs, "lora")
    return replace(
        whole, records=records, histories=histories, summaries=summaries, recommendation=recommend(summaries)
    )


def test_numbers_keep_four_digits_and_differences_three():
    assert [score(v, share=False) for v in (7.12345, 12.34567, 1234.5)] == ["7.123", "12.35", "1234"]
    assert [score_difference(v, share=False) for v in (0.8123, -1.18, 0.0)] == ["+0.812", "−1.18", "0.00"]
    assert [score(0.9114, share=True), score_difference(-0.0118, share=True)] == ["91.14", "−1.18"]


def test_the_smallest_is_first_and_better(perplexities):
    table = build_table(perplexities.summaries, perplexities.recommendation, perplexities.costs)
    cells = {row.method: row for row in table.rows if not row.reference_line}
    assert not table.is_share
    assert table.columns[0].unit == "lower is better, mean ± 95 % interval"
    lowest = min(cells.values(), key=lambda row: row.cells["metric"].value)
    highest = max(cells.values(), key=lambda row: row.cells["metric"].value)
    assert str(lowest.cells["metric"].place).startswith("1")
    assert lowest.standing in ("better", "reference")
    assert highest.standing == "worse"
    assert highest.verdict_detail.startswith("+")
    assert "in points" not in " ".join(table.legend)
    assert "test metric. A" not in table.legend[0]


def test_no_per_cent_stands_beside_a_perplexity(perplexities):
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(formats.console_table(perplexities.summaries, perplexities.recommendation))
    shown = console.export_text()
    assert "perplexity" in shown and "%" not in shown.replace("95 %", "")
    assert run_columns("perplexity", share=False)[0] == "test perplexity"
    page = render("t", perplexities.data)
    assert "test perplexity, %" not in page
    assert "test metric, points" not in page
    assert "0 classes" not in page


def test_the_better_end_of_the_scale_is_up(perplexities, whole):
    marks = {s.label: m for s, m in zip(perplexities.summaries, _marks(perplexities))}
    for comparison, up in ((perplexities, -1), (whole, 1)):
        panel = cost_panels(comparison.summaries, comparison.costs, comparison.recommendation, marks)[0]
        bottom, top = json.loads(panel.json)["layout"]["yaxis"]["range"]
        assert (top - bottom) * up > 0


def _marks(comparison):
    from tunewise.pages.palette import marks as marks_for

    return marks_for([s.label for s in comparison.summaries]).values()


def test_far_above_is_off_the_scale_of_what_should_be_low():
    points = [
        Point(name, 1.0, None, None, value, None, None, True)
        for name, value in {"a": 7.0, "b": 7.1, "c": 7.2, "d": 50.0}.items()
    ]
    assert figures.off_scale(points, share=False) == {"d"}
    assert figures.off_scale([replace(p, score=1 - p.score / 100) for p in points]) == {"d"}
    assert figures.off_scale(points) == set()  # as shares: 50 is the best, and the others are not far from it


def test_what_a_users_function_returns_is_of_any_scale_and_more_is_better(whole):
    summaries = [
        replace(
            summary,
            metric="my_metrics.py:score",
            metric_by_seed={seed: 5 * value for seed, value in summary.metric_by_seed.items()},
            test_metric=replace(summary.test_metric, mean=5 * summary.test_metric.mean),
            floor=None,
        )
        for summary in whole.summaries
    ]
    table = build_table(summaries, recommend(summaries))
    column = table.columns[0]
    assert column.title == "test my_metrics.py:score" and column.unit.startswith("higher is better")
    best = max(summaries, key=lambda summary: summary.test_metric.mean)
    assert next(row for row in table.rows if row.method == best.label).cells["metric"].text.startswith("4.6")
    assert "smallest is first in all but the test metric" in " ".join(table.legend)
    assert "in points" not in " ".join(table.legend)
    marks = {s.label: m for s, m in zip(summaries, _marks(whole))}
    bottom, top = json.loads(cost_panels(summaries, whole.costs, None, marks)[0].json)["layout"]["yaxis"]["range"]
    assert bottom < top
