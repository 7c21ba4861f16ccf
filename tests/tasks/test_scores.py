"""Metrics of classification against scikit-learn, and the choice of the main one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics

from command_line import invoke
from tunewise.errors import SpecError
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, StudySpec, TrainingSpec
from tunewise.store.folders import RunStore
from tunewise.study.compare import compare
from tunewise.tasks.build import build_task
from tunewise.tasks.text import TextClassification


class Scores(TextClassification):
    def __init__(self, classes: int) -> None:
        self.labels = [str(i) for i in range(classes)]


def outputs(classes: int, items: int = 200, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (items,), generator=draw)
    logits = torch.randn(items, classes, generator=draw) + 0.8 * torch.nn.functional.one_hot(labels, classes)
    return logits, labels


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_metrics_are_scikit_learns(classes: int) -> None:
    logits, labels = outputs(classes)
    guess = logits.argmax(1)
    expected = {
        "accuracy": metrics.accuracy_score(labels, guess),
        "macro_f1": metrics.f1_score(labels, guess, average="macro"),
        "matthews": metrics.matthews_corrcoef(labels, guess),
        **({"f1": metrics.f1_score(labels, guess)} if classes == 2 else {}),
    }
    task = Scores(classes)
    assert task.score(logits, labels) == pytest.approx(expected, abs=1e-12)
    assert tuple(task.score(logits, labels)) == tuple(task.metrics)


def test_one_predicted_class_has_no_correlation() -> None:
    logits, labels = torch.tensor([[1.0, 0.0]] * 4), torch.tensor([0, 1, 1, 0])
    assert Scores(2).score(logits, labels) == {
        "accuracy": 0.5,
        "macro_f1": pytest.approx(1 / 3),
        "matthews": 0,
        "f1": 0,
    }


def test_the_main_metric_can_be_chosen(tiny_model, toy_csv, tmp_path, monkeypatch, capsys) -> None:
    words = ["compare", f"--model={tiny_model}", f"--data={toy_csv}", "--methods=lora", "--rank=2", "--seeds=1"]
    words += ["--epochs=1", "--learning-rate=0.01", "--no-costs", "--measures=none", f"--out={tmp_path}"]
    assert invoke(monkeypatch, *words, "--metric=mathews") == 2
    message = capsys.readouterr().err
    assert "'mathews'" in message and "'matthews'" in message
    assert invoke(monkeypatch, *words) == 0
    assert invoke(monkeypatch, *words, "--metric=matthews", "--select=metric") == 0
    by_metric = {record.results.metric: record for record in RunStore(tmp_path).records()}
    assert set(by_metric) == {"accuracy", "matthews"}
    assert by_metric["matthews"].results.selected_by == "best validation metric"
    assert by_metric["accuracy"].spec.metric is None
    (page,) = [
        p.read_text(encoding="utf-8")
        for p in tmp_path.glob("compare-*/report.html")
        if "test matthews" in p.read_text()
    ]
    assert "best validation metric" in page


# --- the score of the best constant prediction, by scikit-learn ---------------------------------------------------------


def test_the_floor_is_sklearns_score_of_the_best_constant_prediction(tiny_model, tmp_path):
    path = tmp_path / "skewed.csv"
    rows = [f"the cat {i} {'axe' if i % 10 else 'egg'},{'pos' if i % 10 else 'neg'}" for i in range(200)]
    path.write_text("text,label\n" + "\n".join(rows))
    for positive in (None, "neg"):
        task = build_task(
            StudySpec(
                model=ModelSpec(path=str(tiny_model)),
                data=DataSpec(path=str(path), positive=positive),
                methods=[MethodSpec(name="lora")],
            )
        )
        labels = task.targets(task.test).numpy()
        place = task.labels.index(positive or "pos")
        constants = [np.full_like(labels, c) for c in (0, 1)]
        expected = {
            "accuracy": max(metrics.accuracy_score(labels, c) for c in constants),
            "f1": max(metrics.f1_score(labels, c, pos_label=place, zero_division=0) for c in constants),
            "macro_f1": max(metrics.f1_score(labels, c, average="macro", zero_division=0) for c in constants),
            "matthews": 0.0,
        }
        assert task.constant_scores(task.test) == pytest.approx(expected)
        assert any(f"F1 is that of the class {positive or 'pos'!r}" in note for note in task.facts.notes)
    assert expected["f1"] < 0.25  # the rare class is the positive one


def test_a_positive_class_that_the_data_lacks_is_refused(tiny_model, toy_csv):
    spec = StudySpec(
        model=ModelSpec(path=str(tiny_model)),
        data=DataSpec(path=str(toy_csv), positive="yes"),
        methods=[MethodSpec(name="lora")],
    )
    with pytest.raises(SpecError, match="positive 'yes'.* must be one of two classes"):
        build_task(spec)


def test_a_comparison_by_items_uses_the_chosen_class(tiny_model, tmp_path):
    """Recomputed from the stored logits by scikit-learn."""
    rows = [f"the {'cat' if i % 3 else 'axe'} {i},{'b' if i % 3 else 'a'}" for i in range(120)]
    (tmp_path / "two.csv").write_text("text,label\n" + "\n".join(rows))
    spec = StudySpec(
        model=ModelSpec(path=str(tiny_model)),
        data=DataSpec(path=str(tmp_path / "two.csv"), positive="a"),
        methods=[MethodSpec(name=name, rank=2, learning_rate=rate) for name, rate in (("lora", 2e-2), ("cla", 1e-6))],
        training=TrainingSpec(epochs=8, batch_size=8, max_length=16),
        seeds=[0],
        measures=[],
        metric="f1",
    )
    result = compare(spec, tmp_path / "runs", costs=False)
    expected = []
    for record in result.records:
        arrays = np.load(tmp_path / "runs" / record.id / "predictions.npz")
        score = metrics.f1_score(arrays["labels"], arrays["logits"].argmax(1), pos_label=0, zero_division=0)
        assert record.results.test.metrics["f1"] == pytest.approx(score)
        expected.append(score)
    cla = next(s for s in result.summaries if s.label == "cla")
    assert expected[0] != expected[1]
    assert cla.item_comparison.difference == pytest.approx(expected[1] - expected[0])
