"""Every form of an exported adapter computes what the adapter computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

import tunewise
from test_run import make_spec
from tunewise.errors import SpecError
from tunewise.run import run
from tunewise.store.folders import RunStore
from tunewise.tasks.build import build_task


@pytest.fixture(scope="module")
def trained(tiny_model: Path, toy_csv: Path, tmp_path_factory: pytest.TempPathFactory):
    """(task, adapter folder, logits of the trained model) by method."""
    store = RunStore(tmp_path_factory.mktemp("runs"))
    known = {}

    def get(method: str):
        if method not in known:
            spec = make_spec(tiny_model, toy_csv, method, learning_rate=2e-2)
            record = run(spec, store)
            task = build_task(spec)
            adapter = store.folder(record.id) / "adapter"
            model = tunewise.load(task.load_model(0), adapter).eval()
            known[method] = (task, adapter, logits_of(model, task))
        return known[method]

    return get


@torch.no_grad()
def logits_of(model, task):
    batch = task.collate(list(task.test))
    batch.pop("labels")
    return model.eval()(**batch).logits


@pytest.mark.parametrize("method", ["lora", "cla", "r-c3la", "cola", "paca", "fft", "head"])
def test_merged_model_is_plain_transformers_and_agrees(method: str, trained, tmp_path: Path) -> None:
    task, adapter, expected = trained(method)
    done = tunewise.export(
        adapter, "merged", tmp_path / "m", base=task.load_model(0), batch=task.collate(list(task.test))
    )
    assert done.max_logit_difference is not None
    assert done.max_logit_difference <= 1e-5
    assert done.warning is None
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m")
    assert (logits_of(again, task) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("method", ["cla", "r-cla", "c3la", "r-c3la", "paca", "c-paca"])
def test_compact_columns_load_again_and_are_smaller(method: str, trained, tmp_path: Path) -> None:
    task, adapter, expected = trained(method)
    tunewise.export(adapter, "columns", tmp_path / "c")
    again = tunewise.load(task.load_model(0), tmp_path / "c")
    assert (logits_of(again, task) - expected).abs().max() <= 1e-5
    stock = (adapter / "adapter_model.safetensors").stat().st_size
    assert (tmp_path / "c" / "columns.safetensors").stat().st_size < stock


def test_stock_folder_loads_by_peft_alone(trained, tmp_path: Path) -> None:
    task, adapter, expected = trained("r-c3la")
    tunewise.export(adapter, "lora", tmp_path / "l")
    again = PeftModel.from_pretrained(task.load_model(0), str(tmp_path / "l"))
    assert (logits_of(again, task) - expected).abs().max() <= 1e-5


def test_rounding_that_eats_the_update_is_said_with_its_figure(trained, tmp_path: Path) -> None:
    """A small update in bf16: the loss is what it is found to be by hand."""
    task, adapter, _ = trained("cla")
    base = task.load_model(0)
    done = tunewise.export(
        adapter, "merged", tmp_path / "b", base=task.load_model(0), batch=task.collate(list(task.test)),
        dtype=torch.bfloat16,
    )  # fmt: skip
    deltas = tunewise.delta(tunewise.load(task.load_model(0), adapter, trainable=True))
    lost = total = 0.0
    for name, dw in deltas.items():
        w0 = base.get_submodule(name).weight.detach()
        kept = (w0 + dw).bfloat16().float() - w0.bfloat16().float()
        lost += float(((kept - dw) ** 2).sum())
        total += float((dw**2).sum())
    assert done.update_error == pytest.approx((lost / total) ** 0.5, rel=0.05)
    assert done.warning is None or f"{done.update_error:.0%}" in done.warning


def test_an_existing_folder_is_not_overwritten(trained, tmp_path: Path) -> None:
    _, adapter, _ = trained("cla")
    (tmp_path / "there").mkdir()
    with pytest.raises(SpecError, match="is there already"):
        tunewise.export(adapter, "lora", tmp_path / "there")


def test_columns_of_a_method_without_columns_are_refused(trained, tmp_path: Path) -> None:
    _, adapter, _ = trained("lora")
    with pytest.raises(SpecError, match="trains no columns"):
        tunewise.export(adapter, "columns", tmp_path / "c")
