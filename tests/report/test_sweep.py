"""The tables and maps of a sweep: means over seeds, and the best setting chosen by validation alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunewise.report.sweep import Setting, SweepRow, best, color_range, group_seeds, heat_maps, write_sweep
from tunewise.spec import StudySpec, parse
from tunewise.spec.axes import AXES, varying

_FIXED = ("method", "rank", "alpha", "alpha / rank", "learning_rate", "seed")


def rows(spec: StudySpec, **broken: str) -> list[SweepRow]:
    """Validation rises with the rate, test with the rank; two seeds that differ by 0.02."""
    found = []
    for run in spec.runs():
        at = {axis: AXES[axis](run) for axis in _FIXED}
        fate = broken.get(f"r{run.method.rank}_s{run.seed}", "done")
        if fate != "done":
            found.append(SweepRow(run.id, fate, at, error="it was <too> much"))
            continue
        facts = {
            "metric": "accuracy",
            "validation": 0.5 + 10 * run.learning_rate + 0.02 * run.seed,
            "test": 0.5 + 0.01 * run.method.rank + 0.02 * run.seed,
            "gap": 0.1,
        }
        found.append(SweepRow(run.id, fate, at, facts))
    return found


@pytest.fixture
def asked() -> StudySpec:
    return parse(
        StudySpec,
        {"model": "m", "data": "d", "methods": "lora", "rank": [2, 16], "learning_rate": [1e-3, 1e-2], "seeds": 2},
    )


def drawn(settings: list[Setting], axes: list[str]) -> Any:
    section = heat_maps(settings, axes)
    assert section is not None
    (panel,) = section.panels
    return panel.figure.data[0], panel


def test_cells_are_means_over_seeds(asked: StudySpec) -> None:
    heat, _ = drawn(group_seeds(rows(asked)), ["rank", "learning_rate"])
    assert [list(line) for line in heat.z] == [pytest.approx([0.53, 0.53]), pytest.approx([0.67, 0.67])]
    assert [list(line) for line in heat.text] == [["53.00", "53.00"], ["67.00", "67.00"]]
    assert group_seeds(rows(asked))[0].deviation == f"{100 * 0.02 / 2**0.5:.2f}"


def test_the_best_setting_is_chosen_by_validation_alone(asked: StudySpec) -> None:
    found = group_seeds(rows(asked))
    chosen = best(found)
    assert chosen is not None and chosen.at["learning_rate"] == 1e-2
    _, panel = drawn(found, ["rank", "learning_rate"])
    assert "learning rate 0.01" in panel.caption
    (frame,) = panel.figure.layout.shapes
    assert (frame.x0, frame.x1) == (0.5, 1.5)


def test_a_setting_that_lost_a_seed_is_not_the_best(asked: StudySpec) -> None:
    found = group_seeds(rows(asked, r2_s0="diverged"))  # its mean is of the better seed alone
    chosen = best(found)
    assert chosen is not None and chosen.at["rank"] == 16
    assert next(cell for cell in found if cell.at["rank"] == 2).standing == "1 of 2 seeds, 1 diverged"


def test_less_may_be_better() -> None:
    one = Setting({}, [SweepRow("a", "done", {}, {"validation": 12.0, "test": 13.0}, lower_is_better=True)])
    two = Setting({}, [SweepRow("b", "done", {}, {"validation": 11.0, "test": 14.0}, lower_is_better=True)])
    assert best([one, two]) is two
    assert color_range([13.0, 14.0, 500.0], lower_is_better=True) == (-17.0, -13.0)


def test_a_few_failures_do_not_make_the_rest_look_alike() -> None:
    low, high = color_range([0.9, 0.91, 0.92, 0.1], lower_is_better=False)
    assert (low, high) == (pytest.approx(0.88), 0.92)
    assert color_range([0.5, 0.5], lower_is_better=False) == (0.5, 0.5)


def test_alpha_is_an_axis_of_ratios_where_it_goes_with_the_rank() -> None:
    spec = parse(StudySpec, {"model": "m", "data": "d", "methods": "lora", "rank": [4, 8], "alpha": ["r/2", "r", "2r"]})
    axes = varying(spec.runs())
    assert axes == ["rank", "alpha / rank", "seed"]
    settings = group_seeds(rows(spec))
    axes = axes[:-1]
    heat, _ = drawn(settings, axes)
    assert len(heat.z) == 2 and len(heat.z[0]) == 3


def test_the_page_escapes_what_users_write(asked: StudySpec, tmp_path: Path) -> None:
    failed = rows(asked, r2_s0="failed", r2_s1="failed")
    page = write_sweep(tmp_path, failed, varying(asked.runs()), "<script>alert(1)</script>")
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert "it was &lt;too&gt; much" in text
    assert "4 of 8 runs finished" in text
