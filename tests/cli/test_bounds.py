"""`tunewise bounds` on a run, on a stock PEFT adapter of any origin, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForSequenceClassification

from command_line import invoke
from finished_runs import finished
from tunewise.measures.finished import FinishedRun


@pytest.fixture(scope="module")
def cla(tiny_model: Path, toy_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return finished(tiny_model, toy_csv, tmp_path_factory.mktemp("bounds"), "cla")


def asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = invoke(monkeypatch, "bounds", *words)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def stock(base: Any, folder: Path, rank: int = 3, **options: Any) -> Path:
    """An adapter that PEFT made by itself, away from its start."""
    model = get_peft_model(base, LoraConfig(r=rank, target_modules=["query", "value"], **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


def test_a_run_is_printed_with_everything_that_is_assumed(
    cla: FinishedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = asked(monkeypatch, capsys, str(cla.folder), "--step-size")
    said = " ".join(out.split())
    assert code == 0
    for words in (
        "measured gap of the loss clipped to [0, 1.099]", "(A) information bound, head counted", "vacuous", "(B) Phi_W0",
        "(C) Phi_dW + PAC-Bayes", "no spurious local minimum", "largest safe rate of SGD", "a transformer: residuals",
        "arXiv 2606.13767 Theorem 7", "fixed: the paper's printed formula is wrong", "learning rate of B",
    ):  # fmt: skip
        assert words in said, words


def test_json_holds_the_same_numbers(
    cla: FinishedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = json.loads(asked(monkeypatch, capsys, str(cla.folder), "--json")[1])
    lines = {line["key"]: line for line in values["lines"]}
    assert lines["parameters"]["value"] == 4 * 4 * 32
    assert values["gap"]["range"] == pytest.approx(1.0986, abs=1e-4)
    wider = json.loads(asked(monkeypatch, capsys, str(cla.folder), "--json", "--input-bound", "32")[1])
    ratio = 32 / values["facts"]["input_bound"]
    again = {line["key"]: line for line in wider["lines"]}
    assert again["phi-dw"]["value"] == pytest.approx(ratio * lines["phi-dw"]["value"])


@pytest.mark.parametrize("form", ["classifier", "encoder"])
def test_an_adapter_that_peft_made(
    form: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base model in the form that the adapter's names are of; dW's norm against PEFT's own dense dW."""
    monkeypatch.setenv("TUNEWISE_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    family = AutoModelForSequenceClassification if form == "classifier" else AutoModel
    folder = stock(family.from_pretrained(tiny_model), tmp_path / "adapter", use_rslora=True)
    words = [str(folder), f"--base={tiny_model}", "--json"]
    values = json.loads(asked(monkeypatch, capsys, *words)[1])
    assert [line["key"] for line in values["lines"]] == ["parameters", "phi-dw", "phi-w0"]
    assert "--samples" in values["missing"][0]
    assert values["lines"][0]["value"] == 4 * 3 * (32 + 32)
    from peft import PeftModel

    model = PeftModel.from_pretrained(family.from_pretrained(tiny_model), str(folder))
    norms = {u["name"]: u["update"] for u in values["facts"]["layers"]}
    for name, norm in norms.items():
        dense = model.get_base_model().get_submodule(name).get_delta_weight("default")
        assert norm == pytest.approx(float(torch.linalg.matrix_norm(dense.double(), 2)), rel=1e-5)
    full = json.loads(asked(monkeypatch, capsys, *words, "--samples=100", "--classes=2")[1])
    keys = {line["key"] for line in full["lines"]}
    assert {"information", "theorem-6", "pac-bayes", "rank-no-spurious"} <= keys
    assert full["missing"] == []


def test_a_folder_of_ours_away_from_its_run_knows_its_method(
    cla: FinishedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """r n for columns, not LoRA's r (m + n) of the stored factors."""
    values = json.loads(asked(monkeypatch, capsys, str(cla.adapter), "--json")[1])
    assert values["lines"][0]["value"] == 4 * 4 * 32


def test_a_run_by_the_beginning_of_its_id(
    cla: FinishedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id, runs = cla.folder.name, f"--runs={cla.folder.parent}"
    assert run_id in json.loads(asked(monkeypatch, capsys, run_id[:6], runs, "--json")[1])["of"]
    found = asked(monkeypatch, capsys, "0123456789abcdef", runs)
    assert found[0] == 2 and "no run in" in found[2]


def test_what_is_wrong_is_said_in_a_line(
    cla: FinishedRun, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    torch.manual_seed(0)
    other = stock(AutoModel.from_pretrained(tiny_model), tmp_path / "other")
    weights = (other / "adapter_config.json").read_text()
    (other / "adapter_config.json").write_text(weights.replace(str(tiny_model), ""))
    for words, why in (
        ([str(tmp_path / "none")], "no such folder"),
        ([str(tmp_path)], "not an adapter folder"),
        ([str(cla.folder), "--samples=3"], "has its examples and classes"),
        ([str(cla.adapter), "--step-size"], "needs a run folder"),
        ([str(cla.folder), "--input-bound=0"], "Must be > 0"),
        ([str(other)], "--base"),
        ([str(cla.adapter), "--base=/nowhere"], "no such folder"),
    ):
        code, _, err = asked(monkeypatch, capsys, *words)
        assert code in (2, 3)
        assert why in err, err
        assert len(err.strip().splitlines()) == 1
