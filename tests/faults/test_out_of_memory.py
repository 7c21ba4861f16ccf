"""Where memory runs out, that is what is said: not that a layer can't be merged, that a model has no second derivative
or that a file is damaged. The allocations that really fail are in test_run_faults.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from finished_runs import finished
from tunewise.cli.main import run as command
from tunewise.errors import MeasureError, ModelError, StoreError, is_out_of_memory
from tunewise.inspecting import inspect
from tunewise.measures._weight_space.batches import FixedBatches, plain_model
from tunewise.measures.collect import collect
from tunewise.measures.finished import FinishedRun
from tunewise.measures.sharpness.hessian import figures_of_parameters
from tunewise.measures.updates.folder import updates_of
from tunewise.methods.loading import load
from tunewise.store.folders import RunStore
from tunewise.training.events import Listener

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: "
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1.00 GiB"),
    RuntimeError(f"{ALLOCATOR}not enough memory: you tried to allocate 4294967296 bytes."),
    RuntimeError(f"{ALLOCATOR}can't allocate memory: you tried to allocate 4294967296 bytes. Error code 12"),
    RuntimeError("unable to mmap 1187180 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    OSError(12, "Cannot allocate memory"),
    MemoryError(),
]
ELSE = RuntimeError("no kernel for this")


@pytest.fixture(scope="module")
def trained(tiny_model: Path, toy_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return finished(tiny_model, toy_csv, tmp_path_factory.mktemp("runs"), "lora")


@pytest.fixture(scope="module")
def loha(trained: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose dW is told by PEFT's merge."""
    folder = tmp_path_factory.mktemp("loha")
    base = AutoModelForSequenceClassification.from_pretrained(trained.spec.model.path)
    peft.get_peft_model(base, peft.LoHaConfig(r=2, target_modules=["query"])).save_pretrained(folder)
    return folder


def by_a_hessian(run: FinishedRun, adapter: Path) -> object:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, inputs: Any) -> torch.Tensor:
            return torch.linalg.vector_norm(self.weight)

    model = Model()
    batches = FixedBatches([{"x": torch.ones(1)}], [torch.zeros(1)], lambda logits, labels: logits)
    return figures_of_parameters(model, [model.weight], batches, eigenvalues=1, probes=1, seed=0)


# What raises, what is done, and what any other error is called there.
PLACES: dict[str, tuple[str, Callable[[FinishedRun, Path], object], type[Exception]]] = {
    "a hessian": ("torch.linalg.vector_norm", by_a_hessian, MeasureError),
    "a merge": ("peft.tuners.lora.LoraModel.merge_and_unload", lambda run, _: plain_model(run), MeasureError),
    "a merge by inspect": (
        "peft.tuners.lora.LoraModel.merge_and_unload",
        lambda run, _: inspect(run.folder, scale=[0.5]),
        MeasureError,
    ),
    "an update": (
        "tunewise.measures.updates.peft.set_peft_model_state_dict",
        lambda run, _: updates_of(run.adapter, run.base),
        StoreError,
    ),
    "a layer's merge": (
        "peft.tuners.loha.layer.LoHaLayer.get_delta_weight",
        lambda run, adapter: [one.delta() for one in updates_of(adapter, run.base).values()],
        MeasureError,
    ),
    "a model": (
        "transformers.AutoModelForSequenceClassification.from_pretrained",
        lambda run, _: run.task.load_model(0),
        ModelError,
    ),
    "an adapter": (
        "tunewise.methods.loading.set_peft_model_state_dict",
        lambda run, _: load(run.task.load_model(0), run.adapter, trainable=True),
        StoreError,
    ),
    "an adapter by PEFT": (
        "peft.PeftModel.from_pretrained",
        lambda run, _: load(run.task.load_model(0), run.adapter),
        StoreError,
    ),
}


def raising(error: Exception) -> Callable[..., object]:
    def fails(*_: object, **__: object) -> object:
        raise error

    return fails


@pytest.mark.parametrize("place", list(PLACES))
def test_it_passes_as_what_it_is(place: str, trained: FinishedRun, loha: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what, work, usual = PLACES[place]
    for error in OUT_OF_MEMORY:
        if isinstance(error, OSError) and usual is not ModelError:
            continue  # of files alone
        monkeypatch.setattr(what, raising(error))
        with pytest.raises(type(error)) as raised:
            work(trained, loha)
        assert is_out_of_memory(raised.value)
    monkeypatch.setattr(what, raising(ELSE))
    with pytest.raises(usual, match="no kernel for this"):
        work(trained, loha)


def test_an_error_met_while_it_was_handled_counts_and_others_do_not() -> None:
    """As numpy's archives, which can't be closed after it."""
    with pytest.raises(ValueError, match="close") as raised:
        try:
            raise MemoryError
        finally:
            raise ValueError("can't close the file")
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(ELSE)
    assert all(map(is_out_of_memory, OUT_OF_MEMORY))


def test_a_measure_that_ran_out_of_memory_says_so_and_is_made_the_next_time(
    trained: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measures after it are made all the same."""
    store = RunStore(trained.folder.parent)

    def measured() -> dict[str, Any]:
        found = collect(["spectrum", "intruders"], [trained.record], store, trained.task, Listener())
        return {name: found[name][trained.record.id] for name in found}

    with monkeypatch.context() as patch:
        patch.setattr("tunewise.measures.spectrum.compute.spectra_of", raising(OUT_OF_MEMORY[1]))
        first = measured()
    assert first["spectrum"].values is None and str(first["spectrum"].error).startswith("out of memory")
    assert first["intruders"].values is not None
    again = measured()
    assert again["spectrum"].error is None and again["spectrum"].values
    assert again["intruders"] == first["intruders"]


def test_on_the_command_line_it_is_one_line(
    trained: FinishedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tunewise.inspecting.spectra_of", raising(OUT_OF_MEMORY[0]))
    monkeypatch.setattr(sys, "argv", ["tunewise", "inspect", str(trained.folder)])
    with pytest.raises(SystemExit) as left:
        command()
    assert left.value.code == 6
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: out of memory")
