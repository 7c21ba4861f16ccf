"""Alignment on real runs: methods whose angles are known, and a dense fp64 recomputation of one that is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finished_runs import finished
from test_run import make_spec
from tunewise.errors import MeasureError
from tunewise.measures.alignment import compute as module
from tunewise.measures.alignment.compute import AlignmentResult, compute
from tunewise.measures.base import MeasureSettings
from tunewise.measures.finished import FinishedRun, no_check
from tunewise.methods.delta import delta
from tunewise.run import run
from tunewise.store.folders import RunStore
from tunewise.training.build import one_step_batches


def alignment(one: FinishedRun) -> AlignmentResult:
    return compute(one, MeasureSettings(), no_check)


def dense_gradient(one: FinishedRun) -> dict[str, torch.Tensor]:
    """-grad of the mean loss over the same examples by plain backward passes, fp64."""
    base = one.task.load_model(one.spec.seed).eval().double()
    batches = one_step_batches(one.spec, one.task)
    total = sum(len(b["labels"]) for b in batches)
    for batch in batches:
        (base(**batch).loss * len(batch["labels"]) / total).backward()
    return {n.removesuffix(".weight"): -p.grad for n, p in base.named_parameters() if n.endswith("weight")}


def angles(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """By the definition: arccos of the singular values."""
    return np.degrees(np.arccos(np.clip(np.linalg.svd(a.T.numpy() @ b.numpy(), compute_uv=False), 0, 1)))


def test_the_angles_are_those_of_dense_decompositions(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    """LoRA at the selected epoch: dense fp64 SVDs of dW and of the gradient; within 1 degree, since the spaces of the
    gradient are found by a randomized method."""
    one = finished(tiny_model, toy_csv, tmp_path, "lora")
    found = alignment(one)
    gradient = dense_gradient(one)
    rank = one.spec.method.rank
    for place, (layer, dw) in enumerate(delta(one.model).items()):
        assert found.layers[place].name == layer
        u, _, vh = torch.linalg.svd(dw.double())
        gu, _, gvh = torch.linalg.svd(gradient[layer])
        for side, expected in (
            ("left", angles(u[:, :rank], gu[:, :rank])),
            ("right", angles(vh[:rank].T, gvh[:rank].T)),
        ):
            assert getattr(found.selected, f"{side}_mean")[place] == pytest.approx(expected.mean(), abs=1.0)
            assert getattr(found.selected, f"{side}_largest")[place] == pytest.approx(expected.max(), abs=1.0)


def test_the_row_space_of_cla_is_that_of_the_first_axes(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    one = finished(tiny_model, toy_csv, tmp_path, "cla")
    found = alignment(one)
    gradient = dense_gradient(one)
    for place, layer in enumerate(found.layers):
        axes = torch.eye(layer.features, dtype=torch.float64)[:, : found.rank]
        expected = angles(axes, torch.linalg.svd(gradient[layer.name])[2][: found.rank].T)
        assert found.selected.right_mean[place] == pytest.approx(expected.mean(), abs=1.0)
        assert found.selected.left_mean[place] is not None


def test_the_gradient_is_taken_once_a_seed_and_the_model_left_as_it_was(
    tiny_model: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = finished(tiny_model, toy_csv, tmp_path, "lora")
    before = {n: t.clone() for n, t in first.model.state_dict().items()}
    base = {n: t.clone() for n, t in first.base.state_dict().items()}
    alignment(first)
    for model, kept in ((first.model, before), (first.base, base)):
        state = model.state_dict()
        assert all(torch.equal(state[n], t) for n, t in kept.items())

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the cache was not used")

    monkeypatch.setattr(module, "gradient_svd", never)
    alignment(finished(tiny_model, toy_csv, tmp_path, "paca"))
    other = make_spec(tiny_model, toy_csv, "paca", seed=1)
    with pytest.raises(AssertionError, match="cache"):
        alignment(
            FinishedRun(run(other, RunStore(tmp_path)), RunStore(tmp_path).folder(other.id), first.task, first.cache)
        )


def test_full_fine_tuning_is_looked_at_where_an_adapter_would_be(
    tiny_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    """Query and value, by a dense decomposition of W - W0."""
    one = finished(tiny_model, toy_csv, tmp_path, "fft")
    found = alignment(one)
    assert [layer.name.rpartition(".")[2] for layer in found.layers] == ["query", "value"] * 2
    gradient, rank = dense_gradient(one), found.rank
    name = found.layers[1].name
    dw = (one.model.get_submodule(name).weight - one.base.get_submodule(name).weight).detach().double()
    expected = angles(torch.linalg.svd(dw)[0][:, :rank], torch.linalg.svd(gradient[name])[0][:, :rank])
    assert found.selected.left_mean[1] == pytest.approx(expected.mean(), abs=1.0)


def test_a_method_without_an_update_is_told_so(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="head alone"):
        alignment(finished(tiny_model, toy_csv, tmp_path, "head"))
