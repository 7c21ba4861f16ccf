"""The figures show the records' numbers, in fixed and readable colours, and take odd comparisons without a fall."""

from __future__ import annotations

import itertools

import pytest

from tunewise.catalog import CATALOG
from tunewise.pages import palette
from tunewise.pages.figures import Bar, bars
from tunewise.report import curves, figures, panels
from tunewise.report.figures import Point


def marks_of(found):
    return palette.marks([s.label for s in found.summaries])


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    bright, dark = sorted([luminance(one), luminance(other)], reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_every_method_colour_stands_out_on_its_page():
    for mark in palette.marks([str(i) for i in range(8)]).values():
        assert contrast(mark.light, palette.LIGHT_PAGE) >= 3
        assert contrast(mark.dark, palette.DARK_PAGE) >= 3
    assert contrast(palette.MUTED, palette.LIGHT_PAGE) >= 4.5
    assert contrast(palette.DARK[palette.MUTED], palette.DARK_PAGE) >= 4.5


def test_no_two_methods_of_the_catalog_look_alike():
    looks = [(m.light, m.symbol) for m in palette.marks(list(CATALOG)).values()]
    assert len(set(looks)) == len(looks)


def test_every_colour_of_a_figure_has_a_dark_one(whole):
    marks = marks_of(whole)
    shown = [*panels.cost_panels(whole.summaries, whole.costs, whole.recommendation, marks)]
    shown += panels.curve_panels(whole.records, whole.histories, whole.summaries, marks)
    shown += panels.confusion_panels(whole.records, whole.summaries, whole.recommendation)
    shown.append(panels.gap_panel(whole.summaries, marks))

    def colours(node):
        if isinstance(node, dict):
            return set().union(*map(colours, node.values()))
        if isinstance(node, list | tuple):
            return set().union(*map(colours, node))
        return {node} if isinstance(node, str) and node.startswith("#") else set()

    for panel in shown:
        assert colours(panel.figure.to_plotly_json()) <= set(palette.DARK)


def test_a_method_has_one_colour_in_all_figures(whole):
    marks = marks_of(whole)
    shown = panels.cost_panels(whole.summaries, whole.costs, whole.recommendation, marks)
    shown += [panels.gap_panel(whole.summaries, marks)]
    for panel, (method, mark) in itertools.product(shown, marks.items()):
        traces = [t for t in panel.figure.data if t.legendgroup == method]
        assert traces
        assert {t.marker.color for t in traces} == {mark.light}


def test_points_and_bars_are_the_summaries(whole):
    step = panels.cost_panels(whole.summaries, whole.costs, whole.recommendation, marks_of(whole))[0]
    for summary in whole.summaries:
        if summary.label == "head":  # off the scale
            continue
        (trace,) = [t for t in step.figure.data if t.legendgroup == summary.label]
        assert trace.y[0] == summary.test_metric.mean
        assert trace.x[0] == pytest.approx(1e3 * summary.cost.step.median)
        assert trace.y[0] + trace.error_y.array[0] == pytest.approx(summary.test_metric.high)
        assert trace.x[0] - trace.error_x.arrayminus[0] == pytest.approx(1e3 * summary.cost.step.low)


def test_pareto_set_is_filled_and_the_choice_ringed(whole):
    step = panels.cost_panels(whole.summaries, whole.costs, whole.recommendation, marks_of(whole))[0]
    for summary in whole.summaries:
        (trace,) = [t for t in step.figure.data if t.legendgroup == summary.label]
        assert trace.marker.symbol.endswith("-open") == (summary.label not in whole.recommendation.pareto)
    rings = [t for t in step.figure.data if t.marker.symbol == "circle-open" and t.marker.size == 26]
    choice = next(s for s in whole.summaries if s.label == whole.recommendation.choice)
    assert [ring.y[0] for ring in rings] == [choice.test_metric.mean]


def test_a_method_far_below_is_named_with_its_score_and_does_not_press_the_others_together(whole):
    step = panels.cost_panels(whole.summaries, whole.costs, whole.recommendation, marks_of(whole))[0]
    head = next(s for s in whole.summaries if s.label == "head")
    (trace,) = [t for t in step.figure.data if t.legendgroup == "head"]
    assert f"{head.test_metric.mean:.1%}" in trace.text[0]
    assert step.figure.layout.yaxis.range[0] > 0.8
    assert "head" in step.caption


def test_an_interval_wider_than_what_a_share_can_be_does_not_stretch_the_axis():
    points = [Point(str(i), 1 + i, None, None, 0.9 - 0.1 * i, -0.5, 1.8, True) for i in range(3)]
    marks = palette.marks([p.method for p in points])
    low, high = figures.accuracy_against_cost(points, marks, cost="s", score="accuracy").layout.yaxis.range
    assert -0.2 <= low < 0 and 1 < high <= 1.1


def test_nothing_is_off_the_scale_where_scores_are_spread():
    spread = [Point(str(i), 1, None, None, 0.5 + 0.1 * i, None, None, True) for i in range(5)]
    assert figures.off_scale(spread) == set()
    assert figures.off_scale(spread[:2]) == set()


def test_curves_hold_mean_lowest_and_highest_of_the_seeds(whole):
    by_method = {"cla": [whole.histories[r.id] for r in whole.records if r.spec.method.name == "cla"]}
    curve = curves.validation_curves(by_method)["cla"]
    assert curve.x == [1, 2, 3]
    assert curve.low == [0.5, 0.25, pytest.approx(0.5 / 3)]
    assert curve.mean == [1.5, 1.25, pytest.approx(0.5 / 3 + 1)]
    assert curve.high == [2.5, 2.25, pytest.approx(0.5 / 3 + 2)]
    assert curves.validation_curves(by_method, "accuracy")["cla"].mean[-1] == pytest.approx(0.8)


def test_many_steps_are_averaged_in_bins_and_nan_steps_left_out():
    history = [{"kind": "step", "step": i, "epoch": i / 100, "loss": float(i)} for i in range(1, 601)]
    history.append({"kind": "step", "step": 601, "epoch": 6.01, "loss": float("nan")})
    curve = curves.training_curves({"cla": [history]})["cla"]
    assert len(curve.x) == curves.MOST_POINTS
    assert curve.mean[0] == pytest.approx(5.5)
    assert curve.x[0] == pytest.approx(0.055)


def test_an_epoch_that_one_seed_lacks_is_not_averaged_over_the_others():
    epoch = {"kind": "epoch", "epoch": 1, "validation": {"loss": 1.0, "metrics": {}}}
    found = curves.validation_curves({"cla": [[epoch, epoch | {"epoch": 2}], [epoch]]})
    assert found["cla"].x == [1.0]
    assert curves.validation_curves({"cla": [[epoch], []]}, "accuracy") == {}


def test_one_seed_has_no_band_and_no_bars(compared):
    one = compared(methods=("lora",), seeds=1, with_costs=False, epochs=1)
    marks = marks_of(one)
    for panel in panels.curve_panels(one.records, one.histories, one.summaries, marks):
        assert len(panel.figure.data) == 1
    gap = panels.gap_panel(one.summaries, marks)
    assert not any(t.error_x.visible for t in gap.figure.data)


def test_confusion_is_the_sum_over_finished_seeds(compared):
    found = compared(methods=("lora", "cla"), status={("cla", 2): "failed"})
    cla = next(p for p in panels.confusion_panels(found.records, found.summaries, None) if p.title == "cla")
    runs = [r for r in found.records if r.spec.method.name == "cla" and r.results]
    total = [[sum(r.results.confusion[i][j] for r in runs) for j in range(3)] for i in range(3)]
    heat = cla.figure.data[0]
    assert [[int(cell) for cell in row] for row in heat.text] == total
    assert heat.z[0][0] == pytest.approx(total[0][0] / sum(total[0]))
    assert "2 seeds" in cla.caption


def test_more_than_sixty_classes_have_no_matrix(compared):
    found = compared(methods=("lora",), labels=[f"class {i}" for i in range(61)])
    assert panels.confusion_panels(found.records, found.summaries, None) == []


def test_class_names_are_shown_letter_for_letter():
    figure = figures.confusion([[1, 0], [2, 0]], ["<a href='https://x.example'>x</a>", "b & c"])
    assert figure.layout.xaxis.ticktext[1] == "b &amp; c"
    assert "<a" not in figure.data[0].customdata[0][0]


def test_an_empty_class_divides_nothing_by_zero():
    assert list(figures.confusion([[0, 0], [0, 3]], ["a", "b"]).data[0].z[0]) == [0, 0]


def test_gap_bars_without_interval():
    figure = bars([Bar("lora", 0.1, None, None, [(0, 0.1)])], palette.marks(["lora"]))
    assert [t.x[0] for t in figure.data] == [0.1, 0.1]
