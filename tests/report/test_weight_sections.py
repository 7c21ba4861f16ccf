"""What the report says of spectra, intruders and predictors of the gap: the numbers are those that were measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from report.conftest import Comparison, make
from tunewise.measures.section_parts import family_marks, parents, short_layers
from tunewise.pages import palette
from tunewise.pages.section import Section
from tunewise.registry import MEASURES
from tunewise.report import gap_predictors_section
from tunewise.report.data import ReportData
from tunewise.report.report_page import build_sections
from tunewise.store.records import Measured

LAYERS = ["encoder.layer.0.attention.self.query", "encoder.layer.0.attention.self.value"]


def intruder_values(cosines: Mapping[str, list[float]]) -> dict[str, Any]:
    common = {"shape": [50, 40], "baseline": 0.4, "solver": "plain"}
    layers = {n: {"name": n, "cosines": c, "values": c, **common} for n, c in cosines.items()}
    return {"top_k": 4, "threshold": 0.6, "layers": layers}


def spectrum_values(effective_rank: float, energy: float | None = 0.25) -> dict[str, Any]:
    layer = {
        "shape": [50, 40],
        "rank": 2,
        "values": [effective_rank, 0.5],
        "effective_rank": effective_rank,
        "stable_rank": 1.5,
        "norm": 1.0,
        "base_norm": 10.0,
        "relative_norm": 0.1,
        "relative_spectral_norm": 0.1,
        "top": 5,
        "energy_left": energy,
        "energy_right": energy,
    }
    layers = {name: {"name": name, **layer} for name in LAYERS}
    return {"effective_rank": effective_rank, "stable_rank": 1.5, "relative_norm": 0.1, "layers": layers}


def section_of(name: str, data: ReportData) -> Section | None:
    """The section of one measure."""
    measure = MEASURES.get(name)
    section_data = data.section_data(measure)
    return None if section_data is None else measure.section(section_data)


def data_of(made: Comparison, **measures: Callable[[Any], dict[str, Any] | str]) -> ReportData:
    """The made-up comparison with measures: each a function from the record to values, or to the reason for none."""
    measured: dict[str, dict[str, Measured]] = {}
    for name, of in measures.items():
        for record in made.records:
            found = of(record)
            values, error = (None, found) if isinstance(found, str) else (found, None)
            measured.setdefault(name, {})[record.id] = Measured(
                name=name, version=1, seconds=1.0, values=values, error=error
            )
    return replace(made.data, costs=None, measured=measured)


def test_nothing_measured_nothing_said() -> None:
    data = data_of(make())
    assert section_of("intruders", data) is None and section_of("spectrum", data) is None
    assert gap_predictors_section.section(data) is None


def test_intruders_are_counted_over_the_weights_that_all_change() -> None:
    def of(record):
        if record.spec.method.name == "head":
            return "no weight of the backbone changes"
        low = 0.5 if record.spec.method.name == "lora" else 0.9
        cosines = {name: [0.95, low, low, 0.1] for name in LAYERS}
        if record.spec.method.name == "fft":
            cosines["pooler.dense"] = [0.0, 0.0, 0.0, 0.0]
        return intruder_values(cosines)

    found = section_of("intruders", data_of(make(), intruders=of))
    assert found is not None
    rows = {row[0]: row for row in found.tables[0].rows}
    assert list(rows) == ["fft", "lora", "cla", "paca"]
    assert found.tables[0].columns[1:5] == ["below 0.2", "below 0.4", "below 0.6", "below 0.8"]
    assert [cell.split()[0] for cell in rows["lora"][1:5]] == ["1.00", "1.00", "3.00", "3.00"]
    assert [cell.split()[0] for cell in rows["fft"][1:5]] == ["1.00", "1.00", "1.00", "1.00"]
    assert rows["lora"][5] == "6.0 of 8" and rows["fft"][5] == "6.0 of 12"  # fft's third weight is in its total alone
    assert "over the 2 weights that all methods change" in found.paragraphs[0]
    assert any("head: no weight" in note for note in found.notes)
    curve = next(t for t in found.panels[0].figure.data if t.name == "lora")
    at = dict(zip(curve.x, curve.y))
    assert (at[0.1], at[0.11], at[0.5], at[0.51], at[0.95], at[0.96], at[1.0]) == (0, 1, 1, 3, 3, 4, 4)
    assert found.panels[0].figure.layout.shapes[0].x0 == 0.4
    heat = found.collapsed[0].figure.data[0]
    assert heat.z[1][2] is None and heat.z[0][2] == 4  # lora does not touch the pooler


def test_methods_without_a_common_weight_are_said_to_have_none() -> None:
    def of(record):
        return intruder_values({f"{record.spec.method.name}.layer": [0.5]})

    found = section_of("intruders", data_of(make(["lora", "cla"]), intruders=of))
    assert found is not None and "no weight is changed by all" in found.paragraphs[0]


def test_a_chain_is_solid_and_its_parent_dashed_in_one_colour() -> None:
    assert parents() == {"cola": "lora", "rac": "asym", "c3la": "cla", "r-c3la": "r-cla", "c-paca": "paca"}
    made = make(["lora", "cla"])
    records = [
        r.model_copy(update={"spec": r.spec.model_copy(update={"method": r.spec.method.model_copy(update=u)})})
        for r in made.records
        for u in ({}, {"name": "c3la"} if r.spec.method.name == "cla" else {"title": "other"})
    ]
    marks = palette.marks(["lora", "cla", "c3la", "other"])
    found = family_marks(records, marks)
    assert found["c3la"].light == found["cla"].light == marks["cla"].light
    assert (found["c3la"].dash, found["cla"].dash) == ("solid", "dash")
    assert found["c3la"].symbol != found["cla"].symbol
    assert found["lora"] == marks["lora"]


def test_spectra_give_means_and_energies_over_chance() -> None:
    made = make(["lora", "cla"])
    data = data_of(made, spectrum=lambda r: spectrum_values(2.0 + r.spec.seed, None if r.spec.seed else 0.25))
    found = section_of("spectrum", data)
    assert found is not None
    row = found.tables[0].rows[0]
    assert row[2].startswith("3.00 ±")
    assert row[4].startswith("10.00")  # 0.1 in per cent
    assert row[5] == "2.50" and row[6] == "2.00"  # 0.25 over 5 / 50 and 5 / 40, of the one seed that has it
    line = next(t for t in found.panels[0].figure.data if t.name == "lora")
    assert line.y[0] == pytest.approx((2 * 3 * 4) ** (1 / 3)) and line.y[1] == pytest.approx(0.5)


@pytest.mark.parametrize(("sign", "answer"), [(1, "larger"), (-1, "smaller")])
def test_a_number_that_orders_many_methods_as_the_gap_does_is_said_to_predict_it(sign: int, answer: str) -> None:
    names = ["head", "fft", "lora", "cla", "paca"]
    made = make(names)
    gaps = {s.label: s.gap.mean for s in made.summaries if s.gap}

    def rank_by_gap(record):
        return spectrum_values(10 + sign * gaps[record.spec.method.label])

    found = gap_predictors_section.section(data_of(made, spectrum=rank_by_gap))
    assert found is not None
    rows = {row[0]: row for row in found.tables[0].rows}
    rank = rows["effective rank of dW"]
    assert rank[1] == "5" and rank[2] == ("+1.00" if sign > 0 else "−1.00")
    assert rank[4] == "0.017" and rank[5] == "yes"  # 2 of 120 orders; the norm is the same everywhere: not tested
    assert f"effective rank of dW ({answer} where the gap is larger)" in found.paragraphs[1]
    assert rows["relative norm of dW"][2:] == ["–", "–", "–", "not tested"]


def test_a_correlation_that_chance_gives_is_not_called_a_prediction() -> None:
    made = make()
    values = {"head": 3.0, "fft": 1.0, "lora": 2.0, "cla": 5.0, "paca": 4.0}
    data = data_of(made, spectrum=lambda r: spectrum_values(values[r.spec.method.label]))
    found = gap_predictors_section.section(data)
    assert found is not None and "None is shown to be correlated with the gap" in found.paragraphs[1]
    assert "only an almost perfect order" in found.paragraphs[1]
    few = make(["lora", "cla", "paca"])
    found = gap_predictors_section.section(
        data_of(few, spectrum=lambda r: spectrum_values(values[r.spec.method.label]))
    )
    assert found is not None and "3 methods are too few" in found.paragraphs[1]


def test_sharpness_and_drift_join_where_they_were_measured() -> None:
    made = make()

    def sharpness(record):
        estimate = {"low": 0.0, "high": 9.0}
        return {
            "sharpness": {"value": 1.0 + len(record.spec.method.label), **estimate},
            "epsilon_sharpness": {"value": 2.0, **estimate},
            "loss": {"value": 0.5, **estimate},
            "spread": 0.1,
            "hessian": None,
            "hessian_missing": None,
            "weights": 10,
            "batches": 2,
            "batch_size": 8,
        }

    def forgetting(record):
        return {"drift": 0.1 * record.spec.seed, "turn": 0.1, "similarity": 0.9, "source": "texts", "loss": None}

    data = data_of(made, sharpness=sharpness, forgetting=forgetting)
    found = gap_predictors_section.section(data)
    assert found is not None
    assert [row[0] for row in found.tables[0].rows] == ["sharpness", "ε-sharpness", "drift of the features"]


def test_all_sections_can_be_written_as_json_and_stand_in_the_page() -> None:
    made = make()
    data = data_of(
        made,
        spectrum=lambda r: spectrum_values(2.0),
        intruders=lambda r: intruder_values({key: [0.3, 0.9] for key in LAYERS}),
    )
    found = {s.key: s for s in build_sections(data)}
    assert {"spectrum", "intruders", "predictors"} <= found.keys()
    keys = [p.key for s in found.values() for p in (*s.panels, *s.collapsed)]
    assert len(keys) == len(set(keys))
    for section in found.values():
        for panel in (*section.panels, *section.collapsed):
            assert panel.alt_text and json.loads(panel.json)["data"]


def test_layers_are_named_by_what_tells_them_apart() -> None:
    names = [f"encoder.layer.{i}.attention.self.{p}" for i in range(2) for p in ("query", "value")]
    assert short_layers(names) == ["0.query", "0.value", "1.query", "1.value"]
    assert short_layers(["encoder.layer.0.attention.query", "encoder.layer.0.dense"]) == ["attention.query", "dense"]
    assert short_layers(["a.b.c"]) == ["c"]
    assert short_layers(["c", "a.c"]) == ["c", "a.c"]
