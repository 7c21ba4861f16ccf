"""The principal directions of a training's path, against a dense SVD of the weights that PEFT itself merges."""

from __future__ import annotations

import copy
from pathlib import Path as File
from typing import Any

import pytest
import torch

from tunewise.errors import MeasureError
from tunewise.measures.finished import FinishedRun
from tunewise.measures.landscape import path as measured
from tunewise.measures.landscape.path import Path, combinations, gram, principal
from tunewise.run import run
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, TrainingSpec
from tunewise.store.folders import RunStore
from tunewise.tasks.build import build_task
from tunewise.training.build import build_model
from tunewise.training.trajectory import SnapshotOptions


def finished(method: str, model: File, data: File, out: File, count: int = 5) -> FinishedRun:
    spec = RunSpec(
        model=ModelSpec(path=str(model)),
        data=DataSpec(path=str(data)),
        method=MethodSpec(name=method, rank=2),
        training=TrainingSpec(epochs=2, batch_size=16, learning_rate=1e-2, max_length=16),
    )
    store, task = RunStore(out), build_task(spec)
    record = run(spec, store, task=task, trajectory=SnapshotOptions(count, full=True) if count else None)
    return FinishedRun(record, store.folder(record.id), task, out / "cache")


def merged_path(found: FinishedRun, names: list[str]) -> torch.Tensor:
    """theta_t of those parameters, whole and dense, (T, all), by restoring each snapshot and merging."""
    rows = []
    attached = build_model(found.spec, found.task)
    for snapshot in found.snapshots:
        snapshot.restore(attached)
        model: Any = copy.deepcopy(attached)
        model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
        rows.append(torch.cat([model.get_parameter(name).detach().double().flatten() for name in names]))
    return torch.stack(rows)


@pytest.mark.parametrize(
    "method",
    [
        "lora",
        "r-c3la",
        "paca",
        "fft",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("cla-rows", "lora-one", "head", "peft:dora")),
    ],
)
def test_principal_directions_are_those_of_a_dense_svd(
    method: str, tiny_model: File, toy_csv: File, tmp_path: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 1e-4: merging rounds W0 + dW to fp32, which is coarse beside the small steps of the path."""
    monkeypatch.setattr(measured, "BLOCK", 50)  # tensors in several blocks of rows
    found = finished(method, tiny_model, toy_csv, tmp_path)
    path = Path(found)
    components = principal(path)
    names = list(components.first)
    dense = merged_path(found, names)
    selected: Any = found.model
    selected = selected.merge_and_unload() if hasattr(selected, "merge_and_unload") else selected
    centre = torch.cat([selected.get_parameter(name).detach().double().flatten() for name in names])

    _, values, basis = torch.linalg.svd(dense - dense.mean(0), full_matrices=False)
    shares = values.square() / values.square().sum()
    for direction, expected, share, coordinate, theirs in zip(
        (components.first, components.second),
        basis,
        components.explained,
        components.coordinates.T,
        shares,
        strict=False,
    ):
        ours = torch.cat([direction[name].double().flatten() for name in names])
        assert float(ours.norm()) == pytest.approx(1.0, abs=1e-4)
        assert abs(float(ours @ expected)) == pytest.approx(1.0, abs=1e-4)
        assert share == pytest.approx(float(theirs), abs=1e-4)
        assert coordinate[0] >= 0
        along = (dense - centre) @ (expected * torch.sign(ours @ expected))
        torch.testing.assert_close(coordinate, along, rtol=0, atol=1e-3 * float(coordinate.abs().max()))
    if method == "fft":
        assert set(names) == {name for name, _ in selected.named_parameters()}
    else:
        assert any("classifier" in name for name in names)
    assert components.explained[0] > components.explained[1] > 0


def test_the_gram_matrix_alone_gives_the_dense_pca() -> None:
    """Random displacements in fp64, to 1e-9."""
    generator = torch.Generator().manual_seed(0)
    moved = torch.randn(7, 40, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 3, 40)
    products = gram(iter([("a", moved[:, :15].view(7, 3, 5)), ("b", moved[:, 15:])]))
    torch.testing.assert_close(products, moved @ moved.T)
    weights, shares = combinations(products)
    _, values, basis = torch.linalg.svd(moved - moved.mean(0), full_matrices=False)
    directions = weights.T @ moved
    signs = torch.sign((directions * basis[:2]).sum(1, keepdim=True))
    torch.testing.assert_close(directions, signs * basis[:2], rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.tensor(shares, dtype=torch.float64), (values**2 / (values**2).sum())[:2])


def test_paths_without_a_plane_are_refused(tiny_model: File, toy_csv: File, tmp_path: File) -> None:
    line = torch.outer(torch.arange(5.0, dtype=torch.float64), torch.ones(9, dtype=torch.float64))
    with pytest.raises(MeasureError, match="along a line"):
        combinations(line @ line.T)
    with pytest.raises(MeasureError, match="along a line, or not at all"):
        combinations(torch.zeros(5, 5, dtype=torch.float64))
    with pytest.raises(MeasureError, match="0 snapshots"):
        Path(finished("lora", tiny_model, toy_csv, tmp_path / "none", count=0))
    with pytest.raises(MeasureError, match="2 snapshots span no plane"):
        Path(finished("lora", tiny_model, toy_csv, tmp_path / "two", count=1))
