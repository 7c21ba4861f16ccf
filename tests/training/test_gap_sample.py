"""The training loss of the gap is that of a fixed sample: the same examples for all, and no others are scored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import PeftModel

from test_run import make_spec
from tunewise.measures.bounds.clipping import losses_of
from tunewise.measures.finished import FinishedRun, no_check
from tunewise.run import run
from tunewise.spec import EvaluationSpec, RunSpec
from tunewise.store.folders import RunStore
from tunewise.tasks.build import build_task
from tunewise.training.evaluation import gap_sample


def with_samples(spec: RunSpec, count: int) -> RunSpec:
    return spec.model_copy(update={"evaluation": EvaluationSpec(gap_samples=count)})


def test_the_sample_is_the_same_for_methods_and_seeds_and_changes_with_the_split(tiny_model, toy_csv):
    first = with_samples(make_spec(tiny_model, toy_csv), 20)
    task = build_task(first)

    def drawn(spec):
        return [task.train.index(example) for example in gap_sample(spec, task)]

    places = drawn(first)
    assert len(set(places)) == 20 and places != list(range(20))
    assert drawn(with_samples(make_spec(tiny_model, toy_csv, "lora", seed=3), 20)) == places
    other_split = first.data.model_copy(update={"split_seed": 1})
    assert drawn(first.model_copy(update={"data": other_split})) != places
    for enough in (len(task.train), len(task.train) + 1, EvaluationSpec().gap_samples):
        assert gap_sample(with_samples(first, enough), task) is task.train
    assert EvaluationSpec().gap_samples == 512


def test_only_the_sample_is_scored_and_its_losses_are_the_runs_own(tiny_model, toy_csv, tmp_path, monkeypatch):
    """Against the losses of all training examples by stock PEFT; bounds read the same losses, or compute them again."""
    spec, store = with_samples(make_spec(tiny_model, toy_csv, "lora"), 20), RunStore(tmp_path)
    task = build_task(spec)
    scored, outputs = [], type(task).outputs

    def count(self, model, examples):
        scored.append(len(examples))
        return outputs(self, model, examples)

    monkeypatch.setattr(type(task), "outputs", count)
    record = run(spec, store, task=task)
    epochs = spec.training.epochs
    assert sum(scored) == 20 + len(task.test) + (epochs + 1) * len(task.validation)
    assert record.results.train.examples == 20
    assert record.gap_source == f"a fixed sample of 20 of the {len(task.train)} training examples"

    folder = store.folder(record.id)
    model = PeftModel.from_pretrained(task.load_model(0), str(folder / "adapter")).eval()
    batch = dict(task.collate(task.train))
    labels = batch.pop("labels")
    with torch.no_grad():
        every = torch.nn.functional.cross_entropy(model(**batch).logits.double(), labels, reduction="none")
    expected = every[[task.train.index(example) for example in gap_sample(spec, task)]].numpy()
    with np.load(folder / "predictions.npz") as file:
        arrays = dict(file)
    np.testing.assert_allclose(arrays["train_losses"], expected, atol=1e-5)
    assert record.results.train.loss == pytest.approx(expected.mean(), abs=1e-5)

    finished = FinishedRun(record, folder, task, tmp_path / "cache")
    np.testing.assert_array_equal(losses_of(finished, no_check)[0], arrays["train_losses"])
    np.savez_compressed(folder / "predictions.npz", **{**arrays, "train_losses": every.numpy()})  # of all examples
    np.testing.assert_allclose(losses_of(finished, no_check)[0], expected, atol=1e-5)
