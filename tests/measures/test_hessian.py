"""Trace and top eigenvalues against dense second derivatives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, hessian

import tunewise
from contracts import models
from measures import quadratic
from tunewise.errors import MeasureError
from tunewise.measures._weight_space.batches import FixedBatches
from tunewise.measures.finished import FinishedRun
from tunewise.measures.sharpness.hessian import Logits, figures_of_parameters, hessian_figures
from tunewise.methods.adapters.base import layer_adapters
from tunewise.run import run
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, TrainingSpec
from tunewise.store.folders import RunStore
from tunewise.tasks.build import build_task

FIGURES = {"eigenvalues": 3, "probes": 4, "seed": 0}


def test_a_quadratic_has_its_own_trace_and_eigenvalues() -> None:
    """Diagonal: sign vectors give the trace without error; and every batch has the same, so the intervals close."""
    spectrum = torch.linspace(0.1, 4.0, 22, dtype=torch.float64)
    model = quadratic.Quadratic(torch.diag(spectrum), [(3, 4), (2, 5)])
    batches = quadratic.batches(model)
    found = figures_of_parameters(Logits(model), [layer.weight for layer in model.layers], batches, **FIGURES)
    assert found.parameters == 22
    assert found.trace.model_dump() == pytest.approx(
        {"value": float(spectrum.sum()), "low": float(spectrum.sum()), "high": float(spectrum.sum())}
    )
    values = [one.value for one in found.eigenvalues]
    assert values == pytest.approx([4.0, 4.0 - 3.9 / 21, 4.0 - 7.8 / 21], rel=1e-4)


def dense(model: nn.Module, wanted: dict[str, torch.Tensor], batches: FixedBatches) -> torch.Tensor:
    """The Hessian of the mean loss as one matrix, by torch's own transforms, in fp64."""
    shapes = {name: p.shape for name, p in wanted.items()}
    sizes = [p.numel() for p in wanted.values()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = {n: t.view(shapes[n]) for n, t in zip(shapes, flat.split(sizes), strict=True)}
        found = [
            batches.losses(functional_call(model, parts, (), dict(inputs)).logits, labels).mean()
            for inputs, labels in zip(batches.inputs, batches.labels, strict=True)
        ]
        return torch.stack(found).mean()

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return hessian(loss)(torch.cat([p.detach().flatten() for p in wanted.values()]))


@pytest.mark.parametrize(
    "method", ["r-c3la", pytest.param("lora", marks=pytest.mark.slow), pytest.param("paca", marks=pytest.mark.slow)]
)
def test_the_trained_factors_of_a_network_have_the_dense_hessians_figures(
    method: str, tiny_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    """A finished run's own parameters: top eigenvalues to 1 %, the trace within four standard errors of its probes;
    column methods, whose folded forward has no second derivative, among them."""
    training = {"epochs": 1, "batch_size": 8, "learning_rate": 2e-2, "max_length": 16}
    spec = RunSpec(
        model=ModelSpec(path=str(tiny_model)),
        data=DataSpec(path=str(toy_csv)),
        method=MethodSpec(name=method, rank=1, targets="query", links=2 if method == "r-c3la" else None),
        training=TrainingSpec(**training),
    )
    store, task = RunStore(tmp_path), build_task(spec)
    record = run(spec, store, task=task)
    finished = FinishedRun(record, store.folder(record.id), task, tmp_path / "cache")
    made = [task.collate(task.train[i : i + 8]) for i in (0, 8)]
    labels = [batch.pop("labels") for batch in made]
    batches = FixedBatches(made, labels, task.losses)
    found = hessian_figures(finished, batches, eigenvalues=2, probes=6, seed=0, check=lambda: None)

    model = tunewise.load(task.load_model(0), finished.adapter, trainable=True).eval()
    for adapter in layer_adapters(model):
        adapter.unfold()
        adapter.fold_mode = "never"
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrix = dense(model, wanted, batches).double()
    values = torch.linalg.eigvalsh(matrix).flip(0)
    assert found.parameters == len(values)
    assert [one.value for one in found.eigenvalues] == pytest.approx(values[:2].tolist(), rel=0.01)
    off_diagonal = matrix - matrix.diagonal().diag()
    error = float((2 * off_diagonal.square().sum() / 6).sqrt())  # of Hutchinson's estimate with sign vectors
    assert found.trace.value == pytest.approx(float(matrix.trace()), abs=4 * error)
    assert found.trace.low < found.trace.value < found.trace.high


def test_a_part_without_a_second_derivative_is_one_line() -> None:
    """The folded forward of a column method, as it stands in training."""
    model = tunewise.attach(models.make("bert"), "cla", rank=2).eval()
    batch = models.batch("bert")
    batches = FixedBatches([batch], [batch.pop("labels")], lambda o, y: F.cross_entropy(o, y, reduction="none"))
    wanted = [p for p in model.parameters() if p.requires_grad]
    with pytest.raises(MeasureError, match="no second derivative"):
        figures_of_parameters(Logits(model), wanted, batches, **FIGURES)
