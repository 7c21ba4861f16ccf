"""The tables and maps of a sweep: means over seeds, and the best setting chosen by validation alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunewise.spec import StudySpec, parse
from tunewise.study.axes import AXES
from tunewise.study.sweep_page import heat_maps, scale, write_sweep_page
from tunewise.study.sweep_table import Cell, SweepRow, as_good, best, cells

_FIXED = ("method", "rank", "alpha", "learning_rate", "seed")


def rows(spec: StudySpec, **broken: str) -> list[SweepRow]:
    """Validation rises with the rate, test with the rank; two seeds that differ by 0.02."""
    found = []
    for run in spec.runs():
        at = {axis: AXES[axis](run) for axis in _FIXED}
        fate = broken.get(f"r{run.method.rank}_s{run.seed}", "done")
        known: dict[str, Any] = (
            {"error": "it was <too> much"}
            if fate != "done"
            else {
                "metric": "accuracy",
                "validation": 0.5 + 10 * run.learning_rate + 0.02 * run.seed,
                "test": 0.5 + 0.01 * run.method.rank + 0.02 * run.seed,
                "gap": 0.1,
            }
        )
        found.append(SweepRow(run.id, fate, at, **known))
    return found


@pytest.fixture
def asked() -> StudySpec:
    return parse(
        StudySpec,
        {"model": "m", "data": "d", "methods": "lora", "rank": [2, 16], "learning_rate": [1e-3, 1e-2], "seeds": 2},
    )


def drawn(settings: list[Cell], axes: list[str]) -> Any:
    section = heat_maps(settings, axes)
    assert section is not None
    (panel,) = section.panels
    return panel.figure.data[0], panel


def test_cells_are_means_over_seeds(asked: StudySpec) -> None:
    heat, _ = drawn(cells(rows(asked)), ["rank", "learning_rate"])
    assert [list(line) for line in heat.z] == [pytest.approx([0.53, 0.53]), pytest.approx([0.67, 0.67])]
    assert [list(line) for line in heat.text] == [["53.00", "53.00"], ["67.00", "67.00"]]
    assert cells(rows(asked))[0].deviation("test") == pytest.approx(0.02 / 2**0.5)


def test_the_best_setting_is_chosen_by_validation_alone(asked: StudySpec) -> None:
    found = cells(rows(asked))
    chosen = best(found)
    assert chosen is not None and chosen.at["learning_rate"] == 1e-2
    _, panel = drawn(found, ["rank", "learning_rate"])
    assert "learning rate 0.01" in panel.caption
    (frame,) = panel.figure.layout.shapes
    assert (frame.x0, frame.x1) == (0.5, 1.5)


def test_a_setting_that_lost_a_seed_is_not_the_best(asked: StudySpec) -> None:
    found = cells(rows(asked, r2_s0="diverged"))  # its mean is of the better seed alone
    chosen = best(found)
    assert chosen is not None and chosen.at["rank"] == 16
    assert next(cell for cell in found if cell.at["rank"] == 2).standing == "1 of 2 seeds, 1 diverged"


def test_less_may_be_better() -> None:
    one = Cell({}, [SweepRow("a", "done", {}, "perplexity", True, 12.0, 13.0)])
    two = Cell({}, [SweepRow("b", "done", {}, "perplexity", True, 11.0, 14.0)])
    assert best([one, two]) is two
    assert scale([13.0, 14.0, 500.0], lower_is_better=True) == (-17.0, -13.0)


def test_a_few_failures_do_not_make_the_rest_look_alike() -> None:
    low, high = scale([0.9, 0.91, 0.92, 0.1], lower_is_better=False)
    assert (low, high) == (pytest.approx(0.88), 0.92)
    assert scale([0.5, 0.5], lower_is_better=False) == (0.5, 0.5)


def test_alpha_is_an_axis_of_ratios_where_it_goes_with_the_rank() -> None:
    spec = parse(StudySpec, {"model": "m", "data": "d", "methods": "lora", "rank": [4, 8], "alpha": ["r/2", "r", "2r"]})
    found = rows(spec)
    from tunewise.study.sweep_page import _axes, _with_ratio

    settings = [_with_ratio(cell) for cell in cells(found)]
    axes = _axes(settings)
    assert axes == ["rank", "alpha / rank"]
    heat, _ = drawn(settings, axes)
    assert len(heat.z) == 2 and len(heat.z[0]) == 3


def test_the_page_escapes_what_users_write(asked: StudySpec, tmp_path: Path) -> None:
    failed = rows(asked, r2_s0="failed", r2_s1="failed")
    page = write_sweep_page(tmp_path, SimpleNamespace(spec=asked), failed, "<script>alert(1)</script>")  # type: ignore[arg-type]
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert "it was &lt;too&gt; much" in text
    assert "4 of 8 runs finished" in text


def test_settings_that_tie_with_the_best_are_counted() -> None:
    def cell(rank: int, validation: list[float | None]) -> Cell:
        rows = [
            SweepRow(f"{rank}{i}", "done" if v is not None else "failed", {"rank": rank}, test=v, validation=v)
            for i, v in enumerate(validation)
        ]
        return Cell({"rank": rank}, rows)

    among = [cell(1, [0.5, 0.7]), cell(2, [0.8, 0.6]), cell(4, [0.6, 0.8]), cell(8, [0.7, 0.7]), cell(16, [0.7, None])]
    chosen = best(among)
    assert chosen is among[1]
    assert as_good(among, chosen) == "2 more settings"  # not the one that lost a seed
    assert as_good(among[:3], chosen) == "1 more setting"
    assert as_good(among[:2], chosen) == ""
