"""Spectra and intruders of finished runs: plain data that agrees with a dense computation; the run is not changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import save_tiny_model
from tunewise.errors import MeasureError
from tunewise.measures._linalg.base_spectra import FOLDER
from tunewise.measures.base import MeasureSettings
from tunewise.measures.finished import Check, FinishedRun, no_check
from tunewise.measures.intruders import compute as intruder_module
from tunewise.measures.intruders.compute import IntruderSettings, IntrudersResult
from tunewise.measures.spectrum import compute as spectrum_module
from tunewise.measures.spectrum.compute import SpectrumResult
from tunewise.models.layers import linear_layers
from tunewise.run import run
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, TrainingSpec
from tunewise.store.files import sha256
from tunewise.store.folders import RunStore
from tunewise.tasks.build import build_task

METHODS = ["lora", "c3la", "paca", "fft", "peft:dora", pytest.param("peft:pissa", marks=pytest.mark.slow)]


def spectrum(of: FinishedRun, check: Check = no_check) -> SpectrumResult:
    return spectrum_module.compute(of, MeasureSettings(), check)


def intruders(of: FinishedRun, check: Check = no_check, **settings: Any) -> IntrudersResult:
    return intruder_module.compute(of, IntruderSettings(**settings), check)


@pytest.fixture(scope="module")
def finished(toy_csv: Path, tmp_path_factory: pytest.TempPathFactory):
    """A function: method -> its finished run on a model wide enough for Lanczos' method; each made once."""
    root = tmp_path_factory.mktemp("weights")
    model = save_tiny_model(root / "model", hidden=64)
    store = RunStore(root / "runs")
    made: dict[str, FinishedRun] = {}

    def of(method: str) -> FinishedRun:
        if method not in made:
            spec = RunSpec(
                model=ModelSpec(path=str(model)),
                data=DataSpec(path=str(toy_csv)),
                method=MethodSpec(name=method, rank=2),
                training=TrainingSpec(epochs=1, batch_size=16, learning_rate=2e-2, max_length=16),
            )
            record = run(spec, store)
            made[method] = FinishedRun(record, store.folder(record.id), build_task(spec), store.root / "cache")
        return made[method]

    return of


def merged_weights(of: FinishedRun) -> dict[str, torch.Tensor]:
    """The trained model's own weights, by PEFT's merge (for `fft` they are what was trained)."""
    from tunewise.measures._weight_space.batches import plain_model

    return {name: layer.weight.detach().double() for name, layer in linear_layers(plain_model(of)).items()}


@pytest.mark.parametrize("method", METHODS)
def test_agree_with_a_dense_computation_and_change_nothing(method: str, finished) -> None:
    of = finished(method)
    base, model = of.base, of.model
    states = [{n: t.clone() for n, t in m.state_dict().items()} for m in (base, model)]
    trees = [[(n, type(m)) for n, m in held.named_modules()] for held in (base, model)]
    files = {file: sha256(file) for file in sorted(of.folder.rglob("*")) if file.is_file()}
    calls: list[int] = []

    spectra, counted = spectrum(of, lambda: calls.append(1)), intruders(of, lambda: calls.append(1))

    for held, state, tree in zip((base, model), states, trees):
        assert all(torch.equal(t, state[n]) for n, t in held.state_dict().items())
        assert tree == [(n, type(m)) for n, m in held.named_modules()]
    assert files == {file: sha256(file) for file in sorted(of.folder.rglob("*")) if file.is_file()}
    layers = spectra.layers
    assert len(calls) == 2 * len(layers)
    assert len(layers) == (13 if method == "fft" else 4)  # fft: 6 a block and the pooler; not the head
    after, before = merged_weights(of), linear_layers(base)
    for name, layer in layers.items():
        w0 = before[name].weight.detach().double()
        values = torch.linalg.svdvals(after[name] - w0)
        known = torch.tensor(layer.values, dtype=torch.float64)
        # the merged model is in fp32: its own rounding is in the reference
        noise = 3e-7 * float(w0.abs().max()) * max(w0.shape) ** 0.5
        assert (known - values[: len(known)]).abs().max() < noise
        assert len(known) == min(64, len(values)) or values[len(known)] < noise  # and nothing was left out
        u0, u1 = (torch.linalg.svd(w, full_matrices=False)[0] for w in (w0, after[name]))
        cosines = (u1.T @ u0).abs().max(dim=1).values[:10]
        gaps = torch.linalg.svdvals(after[name])[:11].diff().abs().min()
        error = (torch.tensor(counted.layers[name].cosines) - cosines).abs().max()
        assert error < 20 * noise / float(gaps)


def test_one_decomposition_serves_all_methods_and_seeds(finished) -> None:
    folder = finished("lora").cache / FOLDER
    intruders(finished("lora"))
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert before
    for method in ("c3la", "paca"):
        intruders(finished(method))
        spectrum(finished(method))
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_settings_change_what_is_counted(finished) -> None:
    plain = intruders(finished("lora"))
    every = intruders(finished("lora"), top_k="all", threshold=1.0)
    assert (plain.top_k, plain.vectors, every.top_k, every.vectors) == (10, 40, "all", 256)
    assert every.threshold == 1.0 and every.count() >= plain.count()
    for name, layer in plain.layers.items():
        assert every.layers[name].cosines[:10] == pytest.approx(layer.cosines, abs=1e-9)


def test_a_head_alone_has_no_update(finished) -> None:
    for measure in (spectrum, intruders):
        with pytest.raises(MeasureError, match="no weight of the backbone"):
            measure(finished("head"))


def test_a_damaged_adapter_is_a_reason_and_no_crash(finished) -> None:
    of = finished("lora")
    file = of.adapter / "adapter_model.safetensors"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:-9])
        with pytest.raises(MeasureError, match="can't be read"):
            spectrum(of)
    finally:
        file.write_bytes(whole)
