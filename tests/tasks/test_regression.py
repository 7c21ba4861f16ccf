"""Regression of texts: metrics against scipy, faults in one line, STS-B, a whole comparison."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from command_line import invoke
from convert import cola_csv, stsb_csv
from tiny import save_toy_csv
from tunewise.errors import DataError
from tunewise.spec import DataSpec, ModelSpec
from tunewise.store.folders import RunStore
from tunewise.tasks.regression import TextRegression, pearson
from tunewise.tasks.splits import PARTS
from tunewise.training.evaluation import evaluate
from tunewise.training.journal import read_history


@pytest.fixture(scope="module")
def shares_csv(tmp_path_factory) -> Path:
    """Toy texts with a number for each of their three classes."""
    folder = tmp_path_factory.mktemp("shares")
    rows = csv.reader(save_toy_csv(folder / "toy.csv", rows=150).open(encoding="utf-8"))
    numbers = {"animals": 0.5, "food": -1.0, "tools": 2.0}
    with (folder / "shares.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([text, numbers.get(label, label)] for text, label in rows)
    return folder / "shares.csv"


def test_scores_are_scipys(tiny_model, shares_csv):
    task = TextRegression(ModelSpec(path=str(tiny_model)), DataSpec(path=str(shares_csv)), 32)
    draw = np.random.default_rng(0)
    wanted = draw.integers(0, 4, 100) / 2  # with ties
    found = wanted + draw.normal(size=100)
    scores = task.score(torch.tensor(found)[:, None], torch.tensor(wanted))
    assert scores["pearson"] == pytest.approx(stats.pearsonr(found, wanted).statistic, abs=1e-12)
    assert scores["spearman"] == pytest.approx(stats.spearmanr(found, wanted).statistic, abs=1e-12)
    assert scores["mse"] == pytest.approx(np.mean((found - wanted) ** 2), rel=1e-12)


def test_one_output_for_all_has_no_correlation():
    assert pearson(np.ones(5), np.arange(5.0)) == 0
    assert pearson(np.arange(5.0), 3 * np.arange(5.0)) == 1


def test_the_loss_is_the_squared_error_and_the_models_own(tiny_model, shares_csv):
    task = TextRegression(ModelSpec(path=str(tiny_model)), DataSpec(path=str(shares_csv)), 32)
    model = task.load_model(0).eval()
    scored = evaluate(model, task, task.test, batch_size=7)
    numbers = torch.tensor([e["labels"] for e in task.test])
    assert scored.scores.loss == pytest.approx(float(((scored.logits[:, 0] - numbers) ** 2).mean()), rel=1e-6)
    assert scored.scores.loss == pytest.approx(scored.scores.metrics["mse"], rel=1e-6)
    with torch.no_grad():
        assert float(model(**task.collate(task.test)).loss) == pytest.approx(scored.scores.loss, rel=1e-5)
    assert model.config.num_labels == 1


@pytest.mark.parametrize("value", ["high", "nan", "inf", "1,5"])
def test_what_is_no_number_is_named(tmp_path, tiny_model, value):
    path = tmp_path / "a.csv"
    path.write_text(f'text,label\na cat,1.0\na dog,"{value}"\n')
    with pytest.raises(DataError, match=f"a.csv, line 3: column 'label' is '{value}', which is no number"):
        TextRegression(ModelSpec(path=str(tiny_model)), DataSpec(path=str(path)), 32)


def test_one_number_for_all_is_refused(tmp_path, tiny_model):
    path = tmp_path / "a.csv"
    path.write_text("text,label\na cat,1\na dog,1.0\na bird,1e0\n")
    with pytest.raises(DataError, match="all 3 examples have one and the same number"):
        TextRegression(ModelSpec(path=str(tiny_model)), DataSpec(path=str(path)), 32)


def test_stsb_keeps_its_counts_and_loses_its_known_overlaps(shared_data, tiny_model, tmp_path):
    paths = {part: str(path) for part, path in stsb_csv(shared_data, tmp_path).items()}
    data = DataSpec(path=paths["train"], validation=paths["validation"], test=paths["test"], text_pair="text_pair")
    task = TextRegression(ModelSpec(path=str(tiny_model)), data, 64)
    assert len(task.test) == 1_379
    assert len(task.validation) in range(1_494, 1_501)
    values = task.targets(task.test).double()
    assert (float(values.min()), float(values.max())) == (0, 5)
    assert float(values.mean()) == pytest.approx(2.61, abs=0.005)
    # Of the same digest, the three parts share no pair.
    seen = [{tuple(e["input_ids"]) for e in getattr(task, part) if 1 not in e["input_ids"]} for part in PARTS]
    assert not seen[0] & seen[2]


@pytest.fixture(scope="module")
def compared(tiny_model, shares_csv, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    flags = [f"--model={tiny_model}", f"--data={shares_csv}", "--task=regression", "--methods=lora,cla", "--rank=4"]
    flags += ["--seeds=1", "--epochs=6", "--batch-size=8", "--learning-rate=0.02", "--measures=none", "--no-costs"]
    with pytest.MonkeyPatch.context() as patch:
        assert invoke(patch, "compare", *flags, f"--out={out}") == 0
    return out


def test_a_comparison_on_numbers_learns_them(compared):
    records = RunStore(compared).records()
    assert len(records) == 2
    for record in records:
        results = record.results
        assert results.metric == "pearson" and results.higher_is_better and results.lower_is_better == ["mse"]
        assert results.test.metrics["pearson"] > 0.2
        assert results.test.metrics["mse"] == pytest.approx(results.test.loss, rel=1e-5)
        assert math.isfinite(results.gap)
    (page,) = compared.glob("compare-*/report.html")
    assert "test pearson" in page.read_text(encoding="utf-8")


def test_the_mean_squared_error_can_be_the_main_metric(compared, tiny_model, shares_csv, monkeypatch):
    flags = [f"--model={tiny_model}", f"--data={shares_csv}", "--task=regression", "--methods=lora", "--rank=4"]
    flags += ["--seeds=1", "--epochs=2", "--measures=none", "--no-costs", "--metric=mse", "--select=metric"]
    assert invoke(monkeypatch, "compare", "--no-tune", *flags, f"--out={compared}") == 0
    found = [r for r in RunStore(compared).records() if r.spec.metric == "mse"]
    assert len(found) == 1
    assert not any(record.results.higher_is_better for record in found)


@pytest.mark.slow
def test_minilm_learns_stsb_and_cola(shared_data, tmp_path, monkeypatch) -> None:
    """Above no correlation by far on 1,000 pairs (sentence encoders reach 0.8); CoLA by Matthews keeps its best epoch."""
    paths = stsb_csv(shared_data, tmp_path / "stsb")
    model = "--model=package:all_minilm_l6_v2/model.zip"
    words = [f"--data={paths['train']}", f"--validation={paths['validation']}", f"--test={paths['test']}"]
    words += [
        "--text-pair=text_pair",
        "--task=regression",
        "--methods=fft",
        "--seeds=1",
        "--no-costs",
        "--measures=none",
    ]
    words += ["--train-size=1000", "--validation-size=200", "--test-size=300", "--max-length=48", "--epochs=3"]
    assert invoke(monkeypatch, "compare", model, *words, "--learning-rate=1e-4", f"--out={tmp_path / 'a'}") == 0
    (record,) = RunStore(tmp_path / "a").records()
    assert record.results.test.metrics["pearson"] > 0.4
    assert record.results.test.metrics["spearman"] > 0.4
    paths = cola_csv(shared_data, tmp_path / "cola")
    words = [f"--data={paths['train']}", f"--test={paths['test']}", "--metric=matthews", "--select=metric"]
    words += ["--methods=lora", "--seeds=1", "--no-costs", "--measures=none", "--train-size=1500", "--max-length=24"]
    words += ["--validation-size=200", "--epochs=3", "--learning-rate=2e-3", f"--out={tmp_path / 'b'}"]
    assert invoke(monkeypatch, "compare", model, "--no-tune", *words) == 0
    (record,) = RunStore(tmp_path / "b").records()
    assert record.results.metric == "matthews"
    history = read_history(tmp_path / "b" / record.id / "history.jsonl")
    epochs = {
        entry["epoch"]: entry["validation"]["metrics"]["matthews"] for entry in history if entry["kind"] == "epoch"
    }
    assert len(epochs) == 3
    assert epochs[record.results.selected_epoch] == max(epochs.values())
    assert record.results.validation.metrics["matthews"] == pytest.approx(max(epochs.values()), abs=1e-6)
