"""The comparison table: places and ties, numbers, and the same rows in every format."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from stored_runs import record_of, stored_spec
from tunewise.advise.summary import summarise
from tunewise.number_format import (
    TWO_SEEDS,
    difference_end,
    memory,
    nats,
    percent,
    plus_minus,
    points,
    seconds,
    short_count,
    widest,
)
from tunewise.report import table as formats
from tunewise.report.rows import build_table, by_seed, by_size, by_step_time


def test_clear_differences_give_first_second_third():
    scores = {
        name: {seed: level + 0.001 * seed for seed in range(3)} for name, level in zip("dabc", (0.6, 0.9, 0.8, 0.7))
    }
    found = by_seed(scores, higher_is_better=True, resolution=0.001)
    assert {name: str(place) for name, place in found.items()} == {"a": "1", "b": "2", "c": "3"}


def test_what_the_seeds_do_not_tell_apart_shares_a_place_and_the_next_one_starts_after():
    scores = {
        "a": {0: 0.90, 1: 0.92, 2: 0.91},
        "b": {0: 0.92, 1: 0.90, 2: 0.90},
        "c": {0: 0.70, 1: 0.71, 2: 0.705},
    }
    found = by_seed(scores, higher_is_better=True, resolution=0.001)
    assert {name: str(place) for name, place in found.items()} == {"a": "1=", "b": "1=", "c": "3"}


def test_one_seed_tells_nobody_apart():
    assert {str(p) for p in by_seed({"a": {0: 0.9}, "b": {0: 0.1}}, higher_is_better=True).values()} == {"1="}


def test_a_method_alone_gets_no_place():
    assert by_seed({"a": {0: 0.9}, "b": {}}, higher_is_better=True) == {}


def test_the_smaller_gap_is_first():
    scores = {"a": {0: 0.30, 1: 0.31, 2: 0.32}, "b": {0: 0.10, 1: 0.12, 2: 0.12}}
    assert str(by_seed(scores, higher_is_better=False)["b"]) == "1"


def test_step_times_tie_where_their_intervals_overlap(whole):
    found = by_step_time({s.label: s.cost for s in whole.summaries if s.cost})
    assert {name: str(place) for name, place in found.items()} == {"head": "1", "cla": "2=", "paca": "2="}


def test_sizes_tie_within_the_slack():
    sizes = {"a": 100, "b": 104, "c": 106, "d": None}
    assert {name: str(p) for name, p in by_size(sizes, 1.05).items()} == {"a": "1=", "b": "1=", "c": "3"}


def test_cells_hold_the_numbers_of_the_summaries(whole):
    table = build_table(whole.summaries, whole.recommendation, whole.costs)
    for summary, row in zip(whole.summaries, table.rows):
        accuracies = [r.results.test.metrics["accuracy"] for r in whole.records if r.spec.method.name == row.method]
        gaps = [r.results.gap for r in whole.records if r.spec.method.name == row.method]
        assert row.method == summary.label
        assert row.cells["metric"].value == pytest.approx(sum(accuracies) / 3)
        assert row.cells["metric"].text.startswith(f"{100 * sum(accuracies) / 3:.2f} ± ")
        assert row.cells["gap"].value == pytest.approx(sum(gaps) / 3)
        assert row.cells["step"].value == summary.cost.step.median
        assert row.cells["kept"].value == summary.cost.saved_bytes
        assert row.cells["peak"].value == summary.cost.peak_bytes
        assert row.cells["trainable"].value == summary.trainable


def test_verdict_and_recommendation_are_taken_over_not_made_anew(whole):
    table = build_table(whole.summaries, whole.recommendation, whole.costs)
    rows = {row.method: row for row in table.rows}
    assert rows["lora"].verdict == "the reference"
    assert rows["head"].verdict == "worse"
    assert rows["head"].standing == "worse"
    assert [row.method for row in table.rows if row.chosen] == [whole.recommendation.choice]
    assert [row.method for row in table.rows if row.efficient] == whole.recommendation.pareto


def test_reference_lines_of_the_probe_come_last_and_without_places(whole):
    last = build_table(whole.summaries, whole.recommendation, whole.costs).rows[-1]
    assert last.method == "frozen floor"
    assert last.reference_line
    assert all(cell.place is None for cell in last.cells.values())
    assert last.cells["metric"].value is None


def test_without_costs_there_are_no_cost_columns(compared):
    table = build_table(compared(with_costs=False).summaries)
    assert [column.key for column in table.columns] == ["metric", "gap", "trainable"]


def test_lost_runs_are_told(compared):
    found = compared(status={("cla", 1): "diverged", ("paca", 0): "oom", ("paca", 1): "oom", ("paca", 2): "oom"})
    rows = {row.method: row for row in build_table(found.summaries, found.recommendation, found.costs).rows}
    assert rows["cla"].runs == "2 seeds; 1 diverged"
    assert rows["paca"].runs == "0 seeds; 3 oom"
    assert rows["paca"].cells["metric"].text == "–"
    assert rows["paca"].verdict == "not tested"


def test_csv_gives_back_every_number_unrounded(whole):
    table = build_table(whole.summaries, whole.recommendation, whole.costs)
    lines = {line["method"]: line for line in csv.DictReader(io.StringIO(formats.csv(table)))}
    for summary in whole.summaries:
        line = lines[summary.label]
        assert float(line["test_accuracy"]) == summary.test_metric.mean
        assert float(line["test_accuracy_low"]) == summary.test_metric.low
        assert float(line["generalization_gap_nats_high"]) == summary.gap.high
        assert float(line["step_seconds"]) == summary.cost.step.median
        assert int(line["peak_memory_bytes"]) == summary.cost.peak_bytes
    assert lines["frozen floor"]["test_accuracy"] == ""
    assert lines[whole.recommendation.choice]["recommended"] == "yes"


def test_markdown_is_a_table_with_one_cell_a_column(whole):
    text = formats.markdown(build_table(whole.summaries, whole.recommendation, whole.costs))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(whole.summaries) + 1
    assert len({line.count("|") for line in lines}) == 1
    assert f"{whole.recommendation.choice} (recommended)" in text


def test_latex_escapes_and_has_a_line_a_method(whole):
    text = formats.latex(build_table(whole.summaries, whole.recommendation, whole.costs))
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(whole.summaries) + 1
    assert len({line.count("&") for line in body}) == 1
    assert r"$\pm$" in text
    assert r"(\%)" in text
    assert "±" not in text
    assert r"\textbf{" in text


@pytest.mark.parametrize("width", [80, 100])
def test_console_table_fits_and_shows_every_method(whole, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(formats.console_table(whole.summaries, whole.recommendation))
    lines = console.file.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    text = "\n".join(lines)
    assert "…" not in text
    for summary in whole.summaries:
        row = next(line for line in lines if line.startswith(summary.label + " "))
        assert f"{100 * summary.test_metric.mean:.2f}" in row


def test_console_table_of_nothing_finished(compared):
    found = compared(methods=("lora", "cla"), status={(m, s): "failed" for m in ("lora", "cla") for s in range(3)})
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(formats.console_table(found.summaries))
    assert "3 failed" in console.file.getvalue()


def test_an_interval_wider_than_the_scale_is_not_given_as_a_number():
    """Two seeds, 0.3 apart: a t interval of 1.9 to each side of a share."""
    wide, correlation = widest("accuracy", True), widest("matthews", True)
    assert plus_minus(1.906, percent, wide) == " ± >50.00" and plus_minus(1.906, percent, correlation) == " ± >100.00"
    assert plus_minus(0.5, percent, wide) == " ± 50.00" and plus_minus(None, percent, wide) == ""
    assert plus_minus(7.0, nats, widest("perplexity", False)) == " ± 7.0000"
    ends = [difference_end(value, True, wide) for value in (-2.08, 0.4, 2.15)]
    assert ends == ["< −100.00", "+40.00", "> +100.00"]
    summaries = [
        summarise(
            [record_of(stored_spec(seed=seed), accuracy=accuracy) for seed, accuracy in enumerate(seeds)], None, "lora"
        )[0]
        for seeds in ((0.5, 0.8), (0.5, 0.8, 0.6))
    ]
    tables = [build_table([summary]) for summary in summaries]
    assert tables[0].rows[0].cells["metric"].text == "65.00 ± >50.00"
    assert tables[0].rows[0].cells["metric"].high == pytest.approx(0.65 + 1.906, abs=1e-3)  # CSV has what there is
    assert TWO_SEEDS in tables[0].legend and TWO_SEEDS not in tables[1].legend
    assert r"65.00 $\pm$ $>$50.00" in formats.latex(tables[0])


def test_numbers_read_well():
    assert memory(0) == "0 B"
    assert memory(1023) == "1023 B"
    assert memory(3 * 2**20) == "3.00 MiB"
    assert memory(5 * 2**30) == "5.00 GiB"
    assert seconds(0.1812) == "181 ms"
    assert seconds(2.4) == "2.40 s"
    assert seconds(600) == "10.0 min"
    assert short_count(9_999) == "9,999"
    assert short_count(76_294) == "76.3 k"
    assert short_count(22_715_000) == "22.7 M"
    assert points(-0.00001) == "0.00"
    assert points(0.0081) == "+0.81"
    assert nats(-0.0142) == "−0.0142"
