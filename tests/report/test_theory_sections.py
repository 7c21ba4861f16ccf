"""What the report says of bounds, alignment and laziness: computed from the numbers, and plain where they say nothing."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from report.conftest import make
from report.test_weight_sections import data_of, section_of
from tunewise.catalog import get_method
from tunewise.measures._linalg.angles import random_angles
from tunewise.measures.bounds.theorems import Facts, LayerNorms, theorems
from tunewise.measures.section_parts import median
from tunewise.pages.section import Section
from tunewise.store.records import RunRecord

METHODS = ("lora", "cla")


def bounds_values(record: RunRecord, gap: float = 0.05) -> dict[str, Any]:
    facts = Facts(
        layers=[LayerNorms(name=str(i), shape=(384, 384), base=10.0, update=1.0, frobenius=2.0) for i in range(12)],
        method=get_method(record.spec.method.name), rank=8, alpha=16.0, links=None, parameters=0, head=1000,
        input_bound=50.0, input_bound_source="given", samples=400, classes=3, loss_range=math.log(3),
    )  # fmt: skip
    return {
        "gap": {"range": math.log(3), "train": 0.2, "test": 0.2 + gap, "gap": gap, "error": 0.01, "clipped": 0.1},
        "lines": [line.model_dump() for line in theorems(facts)],
        "facts": {
            "samples": 400,
            "classes": 3,
            "head": 1000,
            "layers": [],
            "input_bound": 50.0,
            "input_bound_source": "given",
            "loss_range": math.log(3),
            "bits": 32,
            "delta": 0.05,
            "curvature": None,
        },
    }


def said(section: Section) -> str:
    return " ".join([*section.paragraphs, *section.notes])


def test_nothing_measured_nothing_said() -> None:
    data = data_of(make(METHODS))
    assert [section_of(name, data) for name in ("bounds", "alignment", "laziness")] == [None] * 3


def test_a_vacuous_bound_is_called_so_with_what_it_would_take() -> None:
    data = data_of(make(METHODS), bounds=lambda r: bounds_values(r, 0.05 if r.spec.method.name == "lora" else 0.02))
    found = section_of("bounds", data)
    assert found is not None
    p = 12 * 8 * 384 + 1000  # cla has the fewest
    bound = math.log(3) / 2 * math.sqrt(2 * 32 * p * math.log(2) / 400)
    assert "It is vacuous for every method here" in said(found)
    assert f"that of cla, {bound:.3g}, {bound / 0.02:,.0f} times its measured gap of 0.02" in said(found)
    assert f"from about {round(400 * (bound / math.log(3)) ** 2):,} on" in said(found)
    assert "from rank 49 on" in said(found)  # 49 x 50 / 2 = 1225 > 3 x 400
    rows = {row[0]: row for row in found.tables[0].rows}
    assert rows["cla"][1] == f"{12 * 8 * 384:,}"
    assert rows["cla"][5] == f"{bound:.3g}"
    assert rows["lora"][6] == f"{float(rows['lora'][5]) / 0.05:,.0f} ×" or rows["lora"][6].endswith("×")
    other = {row[0]: row for row in found.tables[1].rows}
    assert other["lora"][5].startswith("10^")
    assert any("transformer" in note for note in found.notes)
    figure = json.loads(found.panels[0].json)
    assert figure["layout"]["xaxis"]["type"] == "log"
    assert all(x > 0 for trace in figure["data"] for x in trace["x"])


def test_a_bound_that_says_something_is_called_so() -> None:
    def of(record: RunRecord) -> dict[str, Any]:
        values = bounds_values(record)
        for line in values["lines"]:
            if line["key"] == "information-head" and record.spec.method.name == "cla":
                line["value"] = 0.4
        return values

    words = said(section_of("bounds", data_of(make(METHODS), bounds=of)))
    assert "It is informative for cla" in words
    assert "vacuous for every method" not in words


def test_a_gap_below_zero_has_a_place_on_a_logarithmic_axis() -> None:
    found = section_of("bounds", data_of(make(METHODS), bounds=lambda r: bounds_values(r, -0.01)))
    figure = json.loads(found.panels[0].json)
    assert all(x > 0 for trace in figure["data"] for x in trace["x"])
    assert any(trace.get("text") == ["−"] for trace in figure["data"])
    assert {row[6] for row in found.tables[0].rows} == {"–"}


def alignment_values(angle: float) -> dict[str, Any]:
    chance = random_angles(384, 8, 8)
    side = {"mean": chance.mean, "low": chance.low, "high": chance.high, "largest": chance.largest}
    keys = ("left_mean", "left_largest", "right_mean", "right_largest")
    end = {key: [angle, angle - 10] for key in keys}
    layers = [{"name": n, "rows": [0, 384], "features": 384, "chance_left": side, "chance_right": side} for n in "qv"]
    return {"rank": 8, "samples": 128, "layers": layers, "selected": end}


def test_alignment_counts_the_layers_that_are_nearer_than_chance() -> None:
    def of(record: RunRecord) -> Any:
        return alignment_values({"lora": 40.0, "cla": 89.5}[record.spec.method.name])

    found = section_of("alignment", data_of(make(METHODS), alignment=of))
    assert found is not None
    assert "lora: 6 of 6 on the side of the outputs, 6 of 6 on the side of the inputs" in said(found)
    assert "cla: 3 of 6 on the side of the outputs" in said(found)  # 79.5 in one layer of two, three seeds
    rows = {row[0]: row for row in found.tables[0].rows}
    assert rows["lora"][1] == "35.0 (35.0–35.0)"
    assert rows["by chance"][1] == f"{random_angles(384, 8, 8).mean:.1f}"


def laziness_values(distance: float | None, share: float = 1.0) -> dict[str, Any]:
    def point(d: float | None, moved: float) -> dict[str, Any]:
        whole = {part: {"distance": d, "moved": moved, "agreement": 0.75} for part in ("train", "test")}
        return {**whole, "backbone": {"distance": d and d * share, "moved": moved, "agreement": 0.75}}

    return {"train_examples": 32, "test_examples": 32, "selected": point(distance, 2.0)}


def test_the_answer_on_laziness_is_computed_from_the_distances() -> None:
    distances = {"head": 1e-6, "lora": 0.7, "cla": 0.3, "paca": None}

    def of(record: RunRecord) -> Any:
        return laziness_values(distances[record.spec.method.name])

    found = section_of("laziness", data_of(make(tuple(distances)), laziness=of))
    words = said(found)
    assert "It holds for head (1e-06); it holds in part for cla (0.3); it does not hold for lora (0.7)" in words
    assert "nothing can be said of paca: the backbone did not move" in words
    assert "more than doubles" not in words
    rows = {row[0]: row for row in found.tables[0].rows}
    assert rows["cla"][1:] == ["0.3", "0.3", "0.3", "2", "75 %"]
    assert rows["paca"][1] == "–"
    assert len(found.panels) == 2


def test_what_head_and_backbone_do_together_is_said_apart() -> None:
    data = data_of(
        make(METHODS), laziness=lambda r: laziness_values(0.8, share=0.05 if r.spec.method.name == "cla" else 1)
    )
    words = said(section_of("laziness", data))
    assert "It holds for cla (0.04); it does not hold for lora (0.8)" in words
    assert "more than doubles for cla: most of it is the product" in words


@pytest.mark.parametrize(("values", "expected"), [([], None), ([None], None), ([3.0, None, 1.0], 2.0), ([5, 1, 2], 2)])
def test_the_median_of_what_is_known(values: list[float | None], expected: float | None) -> None:
    assert median(values) == expected
