"""What every measure keeps to, the built-in ones and one that is added by a file of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import toy_measure  # noqa: F401 - registers itself
from finished_runs import finished
from report.conftest import make
from tunewise.errors import SpecError
from tunewise.measures.base import Measure, MeasureResult, SectionData
from tunewise.measures.collect import collect, read_measures
from tunewise.measures.finished import FinishedRun, no_check
from tunewise.pages import palette
from tunewise.registry import DEFAULT_MEASURES, MEASURES
from tunewise.report.report_page import render
from tunewise.spec import StudySpec
from tunewise.store.files import sha256
from tunewise.store.folders import RunStore
from tunewise.store.records import Measured
from tunewise.training.events import Listener

NAMES = MEASURES.names()
SMALL: dict[str, dict[str, object]] = {
    "sharpness": {"batches": 2, "directions": 2, "ascent": 1, "eigenvalues": 1, "probes": 1},
    "landscape": {"grid": 3, "batches": 2},
}


@pytest.fixture(scope="module")
def run(tiny_model: Path, toy_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return finished(tiny_model, toy_csv, tmp_path_factory.mktemp("measures"), "lora")


@pytest.fixture(scope="module")
def results(run: FinishedRun) -> dict[str, MeasureResult]:
    """Filled by the tests of `compute`, so that each measure is computed once."""
    return {}


def result_of(name: str, run: FinishedRun, results: dict[str, MeasureResult]) -> MeasureResult:
    if name not in results:
        measure: Measure[Any] = MEASURES.get(name)
        results[name] = measure.compute(run, measure.parse_settings(SMALL.get(name, {})), no_check)
    return results[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_measure_is_registered_under_its_name_with_a_class_for_its_results(name: str) -> None:
    measure = MEASURES.get(name)
    assert measure.name == name and measure.version >= 1
    assert measure.title[0].islower() or measure.title.isupper()
    assert issubclass(measure.result, MeasureResult)


@pytest.mark.parametrize("name", NAMES)
def test_settings_have_defaults_and_refuse_unknown_keys(name: str) -> None:
    measure = MEASURES.get(name)
    assert isinstance(measure.parse_settings({}), measure.settings)
    with pytest.raises(SpecError, match=name):
        measure.parse_settings({"no_such_key": 1})
    assert all(field.description for field in measure.settings.model_fields.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_result_is_typed_survives_json_and_leaves_the_run_as_it_was(
    name: str, run: FinishedRun, results: dict[str, MeasureResult]
) -> None:
    measure = MEASURES.get(name)
    states = [{n: t.clone() for n, t in model.state_dict().items()} for model in (run.base, run.model)]
    files = {file: sha256(file) for file in sorted(run.folder.rglob("*")) if file.is_file()}
    result = result_of(name, run, results)
    assert type(result) is measure.result
    assert measure.result.model_validate_json(result.model_dump_json()) == result
    for model, state in zip((run.base, run.model), states, strict=True):
        assert all(torch.equal(tensor, state[n]) for n, tensor in model.state_dict().items())
    assert files == {file: sha256(file) for file in sorted(run.folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_a_stop_reaches_the_user(name: str, run: FinishedRun) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    measure = MEASURES.get(name)
    with pytest.raises(KeyboardInterrupt):
        measure.compute(run, measure.parse_settings(SMALL.get(name, {})), stop)


@pytest.mark.parametrize("name", NAMES)
def test_the_section_draws_the_result(name: str, run: FinishedRun, results: dict[str, MeasureResult]) -> None:
    measure = MEASURES.get(name)
    label = run.spec.method.label
    data = SectionData([(run.record, result_of(name, run, results))], palette.marks([label]), ["fft: no reason."])
    section = measure.section(data)
    assert section is not None and section.key == name and section.title
    assert "fft: no reason." in section.notes
    for panel in (*section.panels, *section.collapsed):
        assert panel.title and panel.alt_text and panel.json
    assert section.tables
    for table in section.tables:
        assert any(row[0] == label for row in table.rows)
        assert all(len(row) == len(table.columns) for row in table.rows)


@pytest.mark.parametrize("name", NAMES)
def test_the_report_has_the_section(name: str, run: FinishedRun, results: dict[str, MeasureResult]) -> None:
    made = make(("lora",), seeds=1)
    values = result_of(name, run, results).model_dump(mode="json")
    measured = {made.records[0].id: Measured(name=name, version=1, seconds=0.1, values=values)}
    page = render("A report", made.data_with({name: measured}))
    assert f'<section aria-labelledby="{name}">' in page


def test_a_result_is_computed_once_and_again_for_other_settings(run: FinishedRun) -> None:
    store = RunStore(run.folder.parent)
    arguments = (["toy"], [run.record], store, run.task, Listener())
    first = collect(*arguments)
    assert collect(*arguments) == first == read_measures(["toy"], [run.record], store)
    other = {"toy": {"order": 1}}
    assert read_measures(["toy"], [run.record], store, other) == {"toy": {}}
    assert collect(*arguments, other)["toy"][run.record.id].values != first["toy"][run.record.id].values


def test_a_spec_knows_names_without_importing_a_measure() -> None:
    code = (
        "import sys; from tunewise.spec import StudySpec\n"
        "spec = StudySpec.model_validate(dict(model='m', data='d.csv', methods='lora', measures='laziness,bounds'))\n"
        "assert spec.measures == ['laziness', 'bounds']\n"
        "print([m for m in sys.modules if m.startswith('tunewise.measures') or m == 'torch'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_spec_takes_the_name_of_an_added_measure_and_refuses_unknown_ones() -> None:
    content = {"model": "m", "data": "d.csv", "methods": "lora"}
    assert StudySpec.model_validate(content).measures == list(DEFAULT_MEASURES)
    assert StudySpec.model_validate({**content, "measures": "toy,spectrum"}).measures == ["toy", "spectrum"]
    with pytest.raises(SpecError, match="unknown measure 'tois'; did you mean 'toy'"):
        StudySpec.model_validate({**content, "measures": "tois"})
    with pytest.raises(SpecError, match="measure toy: order"):
        StudySpec.model_validate({**content, "measure_settings": {"toy": {"order": 0}}})
