"""Predictions of finished runs: those that the run saved, and those of PEFT and transformers alone."""

from __future__ import annotations

import ast
import contextlib
import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tunewise
from contracts import test_tasks
from tiny import save_toy_csv
from tunewise.errors import DataError, ModelError, SpecError, StoreError
from tunewise.models.load import model_digest
from tunewise.predicting import plain_lines
from tunewise.run import run
from tunewise.spec import RunSpec, StudySpec
from tunewise.store.folders import RunStore
from tunewise.store.records import RunRecord
from tunewise.study.plan import make_plan
from tunewise.tasks.text_metrics import normalize_spaces


@dataclass(frozen=True)
class Finished:
    """A run with a test file of its own, in the file's order."""

    record: RunRecord
    folder: Path
    test: Path

    @property
    def saved(self) -> Any:
        return np.load(self.folder / "predictions.npz")


def train(spec: StudySpec, folder: Path, **changes: Any) -> Finished:
    store = RunStore(folder / "runs")
    spec = make_plan(spec.model_copy(update=changes), store).spec  # with the digests
    run_spec: RunSpec = spec.runs()[0]
    record = run(run_spec, store)
    assert record.status == "done", record.error
    return Finished(record, store.folder(record.id), Path(spec.data.test or spec.data.path))


def with_test(case: str, folder: Path) -> StudySpec:
    """The spec of a case of the contracts; every fourth record of its data is a test file."""
    spec = test_tasks.MAKE[case](folder).spec
    data = Path(spec.data.path)
    test = data.with_name(f"test-{data.name}")
    if data.is_dir():
        for file in sorted(data.rglob("*.png"))[::4]:
            (test / file.parent.name).mkdir(parents=True, exist_ok=True)
            file.rename(test / file.parent.name / file.name)
    else:
        lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
        header = [lines.pop(0)] if data.suffix == ".csv" else []
        test.write_text("".join([*header, *lines[::4]]), encoding="utf-8")
        data.write_text("".join([*header, *(line for i, line in enumerate(lines) if i % 4)]), encoding="utf-8")
    training = spec.training.model_copy(update={"epochs": 2, "batch_size": 8, "learning_rate": 1e-2})
    return spec.model_copy(update={"data": spec.data.model_copy(update={"test": str(test)}), "training": training})


CASES = ["text", "pair", "image", "causal", "prompts", "generation", "regression", "choice", "tags"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Finished]:
    known: dict[str, Finished] = {}

    def get(case: str) -> Finished:
        if case not in known:
            folder = tmp_path_factory.mktemp(case)
            known[case] = train(with_test(case, folder), folder)
        return known[case]

    return get


# --- the run's own test predictions ---------------------------------------------------------------


def expected_rows(done: Finished) -> list[dict[str, Any]]:
    """What the saved outputs of the test split say, by the definitions."""
    outputs, labels = torch.from_numpy(done.saved["logits"]).double(), done.record.data.labels
    kind = done.record.spec.task
    if kind == "regression":
        return [{"prediction": float(number)} for number in outputs[:, 0]]
    if kind == "causal":
        return [{"loss": float(s / n), "perplexity": float(torch.exp(s / n)), "tokens": int(n)} for s, _, n in outputs]
    if kind == "tags":
        return [{f"probability_{label}": float(p) for label, p in zip(labels, row.sigmoid())} for row in outputs]
    rows = []
    for row in outputs:
        scores = row.exp() / row.exp().sum()
        named = {f"probability_{label}": float(score) for label, score in zip(labels, scores, strict=True)}
        rows.append({"prediction": labels[int(row.argmax())], **named})
    return rows


@pytest.mark.parametrize("case", [case for case in CASES if case != "generation"])
def test_predictions_are_those_that_the_run_saved_of_its_test_data(case: str, finished) -> None:
    done = finished(case)
    rows = tunewise.predict(done.folder, done.test)
    expected = expected_rows(done)
    assert len(rows) == len(expected) > 0
    for row, wanted in zip(rows, expected, strict=True):
        assert_equal(row, wanted)


def assert_equal(row: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key, value in wanted.items():
        assert row[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-5, abs=1e-5))


def test_generated_texts_are_right_where_the_run_found_an_exact_match(finished) -> None:
    done = finished("generation")
    rows = tunewise.predict(done.folder, done.test)
    with done.test.open(encoding="utf-8", newline="") as file:
        answers = [row["answer"] for row in csv.DictReader(file)]
    right = [normalize_spaces(str(row["prediction"])) == answer for row, answer in zip(rows, answers, strict=True)]
    saved = (done.folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert right == [bool(json.loads(line)["scores"]["exact_match"]) for line in saved]
    assert all(float(row["log_probability"]) < 0 for row in rows)


# --- PEFT and transformers alone ------------------------------------------------------------------

INPUTS = {
    "text": "text\nA text.\n",
    "pair": "a,b\nA text.,Its second text.\n",
    "causal": "A text.\n",
    "prompts": "prompt,answer\nA prompt.,A completion.\n",
    "generation": "prompt\nA prompt.\n",
    "regression": "text\nA text.\n",
    "choice": json.dumps({"text": "A question?", "choices": ["Answer A.", "Answer B.", "Answer C."]}),
}
"""The inputs of the printed lines, as files."""


def printed(lines: list[str]) -> str:
    """What lines of Python print, in a namespace of their own."""
    assert len(lines) == 3 and "tunewise" not in lines[0]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec("\n".join(lines), {})
    return shown.getvalue().strip()


def agrees(output: str, row: dict[str, Any]) -> bool:
    """Whether what was printed is a row of `tunewise.predict`."""
    if "log_probability" in row:
        return output == row["prediction"]
    value = ast.literal_eval(output)
    if not isinstance(value, dict):
        return value == pytest.approx(row["loss"] if "loss" in row else row["prediction"], abs=1e-5)
    named = {f"probability_{label}": score for label, score in value.items()}
    return named == pytest.approx({key: row[key] for key in row if key.startswith("probability_")}, abs=1e-5)


@pytest.mark.parametrize("case", INPUTS)
def test_the_printed_lines_predict_what_tunewise_predicts(case: str, finished, tmp_path: Path) -> None:
    done = finished(case)
    data = tmp_path / f"new{done.test.suffix}"
    data.write_text(INPUTS[case], encoding="utf-8")
    (row,) = tunewise.predict(done.folder, data)
    assert agrees(printed(plain_lines(done.folder)), row)


@pytest.mark.parametrize("method", ["fft", "head", "r-c3la", "peft:dora"])
def test_every_kind_of_method_predicts_without_the_training_data(method: str, tmp_path: Path) -> None:
    spec = with_test("text", tmp_path)
    methods = StudySpec.model_validate({**spec.model_dump(), "methods": method}).methods
    done = train(spec, tmp_path, methods=methods)
    Path(spec.data.path).unlink()
    (tmp_path / "new.csv").write_text(INPUTS["text"], encoding="utf-8")
    (row,) = tunewise.predict(done.folder, tmp_path / "new.csv")
    assert agrees(printed(plain_lines(done.folder)), row)
    for row, wanted in zip(tunewise.predict(done.folder, done.test), expected_rows(done), strict=True):
        assert_equal(row, wanted)


@pytest.mark.parametrize("changes", [{}, {"image_size": 48}, {"processor": False}], ids=["own", "resized", "default"])
def test_the_printed_lines_prepare_images_as_the_run_did(changes: dict[str, Any], finished, tmp_path: Path) -> None:
    if changes:
        spec = with_test("image", tmp_path)
        if not changes.pop("processor", True):
            (Path(spec.model.path) / "preprocessor_config.json").unlink()
        done = train(spec, tmp_path, data=spec.data.model_copy(update=changes))
    else:
        done = finished("image")
    folder = Path(done.record.spec.data.path) / "blue"
    rows = tunewise.predict(done.folder, folder)
    first = sorted(folder.iterdir())[0]
    (row,) = (row for row in rows if row["row"] == f"blue/{first.name}")
    assert len(rows) == len(list(folder.iterdir()))
    assert agrees(printed(plain_lines(done.folder)), row)


def test_a_task_that_does_not_say_how_gets_no_lines(finished) -> None:
    assert plain_lines(finished("tags").folder) == []


def class_names(adapter: Path) -> dict[int, str]:
    """As a reader of the folder finds them."""
    return {int(i): name for i, name in json.loads((adapter / "tunewise.json").read_text())["id2label"].items()}


def texts_of(file: Path) -> list[str]:
    with file.open(encoding="utf-8", newline="") as lines:
        return [row["text"] for row in csv.DictReader(lines)]


@torch.no_grad()
def test_probabilities_are_those_of_stock_peft_on_the_saved_adapter(finished) -> None:
    """All texts in one padded batch, the class names from the adapter's folder."""
    done = finished("text")
    adapter, base = done.folder / "adapter", done.record.spec.model.path
    names = class_names(adapter)
    model = AutoPeftModelForSequenceClassification.from_pretrained(adapter, id2label=names)
    batch = AutoTokenizer.from_pretrained(base)(texts_of(done.test), padding=True, return_tensors="pt")
    probabilities = model(**batch).logits.double().softmax(-1)
    for row, wanted in zip(tunewise.predict(done.folder, done.test), probabilities, strict=True):
        assert row["prediction"] == names[int(wanted.argmax())] == model.config.id2label[int(wanted.argmax())]
        assert [row[f"probability_{name}"] for name in names.values()] == pytest.approx(wanted.tolist(), abs=1e-5)


def test_the_adapters_folder_is_not_taken_for_a_model_and_carries_its_class_names(finished) -> None:
    """transformers loads an adapter's folder as a model's where a config.json lies in it; PEFT needs to be given the
    number of classes, which it takes from the base model otherwise."""
    adapter = finished("text").folder / "adapter"
    assert class_names(adapter) == {0: "animals", 1: "food", 2: "tools"}
    by_peft = AutoPeftModelForSequenceClassification.from_pretrained(adapter, num_labels=3)
    by_transformers = AutoModelForSequenceClassification.from_pretrained(adapter, id2label=class_names(adapter))
    assert by_transformers.config.id2label == class_names(adapter)
    head = by_transformers.classifier.modules_to_save["default"].weight
    assert torch.equal(by_peft.base_model.model.classifier.modules_to_save["default"].weight, head)
    with pytest.raises(RuntimeError, match=r"size mismatch .*torch.Size\(\[3"):
        AutoPeftModelForSequenceClassification.from_pretrained(adapter)


# --- layouts of new data --------------------------------------------------------------------------


def write_layouts(folder: Path, texts: list[str]) -> list[Path]:
    """The same texts without labels, as csv, jsonl, a JSON list and a folder of text files."""
    rows = [{"text": text} for text in texts]
    files = {"new.csv": "\n".join(["text", *texts]), "new.jsonl": "\n".join(map(json.dumps, rows))}
    files |= {"new.json": json.dumps(rows), **{f"texts/{i:03}.txt": text for i, text in enumerate(texts)}}
    (folder / "texts").mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    return [folder / name for name in ("new.csv", "new.jsonl", "new.json", "texts")]


def test_new_data_needs_no_labels_in_any_layout(finished, tmp_path: Path) -> None:
    done = finished("text")
    labelled = [without_place(row) for row in tunewise.predict(done.folder, done.test)]
    texts = texts_of(done.test)
    for path in write_layouts(tmp_path, texts):
        assert [without_place(row) for row in tunewise.predict(done.folder, path)] == labelled, path
    renamed = tmp_path / "renamed.csv"
    renamed.write_text("question\n" + "".join(f"{text}\n" for text in texts))
    rows = tunewise.predict(done.folder, renamed, text="question")
    assert [without_place(row) for row in rows] == labelled
    assert [row["row"] for row in rows[:2]] == ["renamed.csv, line 2", "renamed.csv, line 3"]


def without_place(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "row"}


def test_images_are_predicted_from_a_parquet_file_without_labels(finished, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    done = finished("image")
    files = sorted(done.test.rglob("*.png"))
    parquet.write_table(pyarrow.table({"image": [file.read_bytes() for file in files]}), tmp_path / "new.parquet")
    rows = tunewise.predict(done.folder, tmp_path / "new.parquet")
    assert [without_place(row) for row in rows] == [without_place(r) for r in tunewise.predict(done.folder, done.test)]


def test_questions_need_as_many_answers_as_the_run_had(finished, tmp_path: Path) -> None:
    file = tmp_path / "new.jsonl"
    file.write_text(json.dumps({"text": "the cat", "choices": ["cat", "bread"]}))
    with pytest.raises(DataError, match="line 1: 2 answers, where the run had 3"):
        tunewise.predict(finished("choice").folder, file)


# --- what is refused ------------------------------------------------------------------------------


@pytest.fixture
def copy(finished, tmp_path: Path) -> Finished:
    """A run in a folder of its own, whose model can be changed."""
    done = finished("text")
    folder = shutil.copytree(done.folder.parent, tmp_path / "runs") / done.folder.name
    return Finished(done.record, folder, done.test)


def test_a_damaged_adapter_and_a_changed_model_are_refused(copy: Finished, tmp_path: Path) -> None:
    weights = copy.folder / "adapter" / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StoreError, match=r"adapter_model.safetensors is not what the run has written"):
        tunewise.predict(copy.folder, copy.test)
    weights.write_bytes(content)
    config = Path(copy.record.spec.model.path) / "config.json"
    text = config.read_text()
    try:
        config.write_text(text.replace("}", " }", 1))
        model_digest.cache_clear()
        with pytest.raises(ModelError, match="its files are not those that the run was made with"):
            tunewise.predict(copy.folder, copy.test)
    finally:
        config.write_text(text)
        model_digest.cache_clear()


def test_unfinished_and_linearised_runs_are_refused(copy: Finished) -> None:
    file = copy.folder / "run.json"
    record = RunStore(copy.folder.parent).record(copy.folder.name)
    RunStore(copy.folder.parent).write(record.model_copy(update={"status": "diverged"}))
    with pytest.raises(StoreError, match="ended as 'diverged'"):
        tunewise.predict(copy.folder, copy.test)
    training = record.spec.training.model_copy(update={"linearised": True})
    spec = record.spec.model_copy(update={"training": training})
    RunStore(copy.folder.parent).write(record.model_copy(update={"spec": spec}))
    with pytest.raises(SpecError, match="was trained linearised"):
        tunewise.predict(copy.folder, copy.test)
    file.unlink()
    with pytest.raises(StoreError, match="is not finished"):
        tunewise.predict(copy.folder, copy.test)


def test_the_command_writes_a_row_a_text_and_refuses_in_one_line(finished, call, tmp_path: Path) -> None:
    done = finished("text")
    out = tmp_path / "predictions.csv"
    command = ("predict", done.record.id[:8], "--runs", done.folder.parent, "--data")
    code, shown, _ = call(*command, done.test, "--out", out)
    expected = tunewise.predict(done.folder, done.test)
    assert (code, shown) == (0, f"{out}  ({len(expected)} rows, run {done.record.id})\n")
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{**row, "prediction": "", "row": ""} for row in rows] == [
        {key: str(value) if key.startswith("probability_") else "" for key, value in row.items()} for row in expected
    ]
    assert [row["prediction"] for row in rows] == [row["prediction"] for row in expected]
    wrong, empty, other = (tmp_path / f"{name}.csv" for name in ("wrong", "empty", "other"))
    wrong.write_text("texts\na cat\n")
    empty.write_text("")
    for data, target, message in (
        (done.test, out, "predictions.csv is there already; name another file, or remove it"),
        (done.test, tmp_path / "new.json", "predictions are written as csv"),
        (wrong, other, "wrong.csv: no column 'text'; did you mean 'texts'?"),
        (empty, other, "empty.csv: the file is empty"),
        (tmp_path / "absent.csv", other, "absent.csv: no such file or folder"),
    ):
        code, _, error = call(*command, data, "--out", target)
        assert code == 2 and error.count("\n") == 1 and message in error, error
    assert not other.exists()


def test_a_comparison_prints_lines_that_predict_and_is_a_run_to_predict_with(
    tiny_model: Path, call, tmp_path: Path
) -> None:
    """The lines as printed, in a new process without tunewise on its path."""
    data = save_toy_csv(tmp_path / "toy.csv", rows=400)
    flags = ["--model", tiny_model, "--data", data, "--methods=lora,head", "--seeds=1", "--epochs=4", "--batch-size=8"]
    code, shown, _ = call(
        "compare", *flags, "--no-tune", "--no-costs", "--measures", "none", "--out", tmp_path / "runs"
    )
    assert code == 0
    lines = shown[shown.index("Without tunewise, for one input:") :].splitlines()[1:4]
    script = tmp_path / "lines.py"
    script.write_text("\n".join(lines))
    output = subprocess.run([sys.executable, "-I", script], capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / "new.csv").write_text(INPUTS["text"])
    (comparison,) = (tmp_path / "runs").glob("compare-*")
    out = tmp_path / "predictions.csv"
    code, _, note = call("predict", comparison, "--data", tmp_path / "new.csv", "--out", out)
    assert code == 0 and "is the recommended one" in note
    with out.open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert agrees(output, {key: float(value) for key, value in row.items() if key.startswith("probability_")})
