"""Every form of an exported adapter computes what the adapter computes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import tunewise
from command_line import invoke
from contracts import models
from test_run import make_spec
from tunewise.errors import ExportError, SpecError
from tunewise.models.load import model_digest, model_folder
from tunewise.run import run
from tunewise.store.folders import RunStore
from tunewise.tasks import build
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


# --- tied weights, and checks that fail ---------------------------------------------------------------------------------


def tied_model():
    torch.manual_seed(0)
    return models.make("gpt2").eval()  # lm_head and the token embeddings are one weight


@pytest.mark.parametrize("method", ["lora", "cla", "c3la", "paca", "peft:dora"])
def test_a_tied_head_is_merged_apart_from_the_embeddings(method: str, tmp_path: Path) -> None:
    model = tunewise.attach(tied_model(), method, rank=2, targets=["lm_head", "c_attn"])
    models.stir(model, seed=1)
    inputs = {"input_ids": torch.arange(1, 9)[None]}
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
    embeddings = tied_model().transformer.wte.weight
    adapter = tunewise.save(model, tmp_path / "adapter")
    tunewise.export(adapter, "merged", tmp_path / "merged", base=tied_model(), batch=inputs)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert again.config.tie_word_embeddings is False
    assert torch.equal(again.transformer.wte.weight, embeddings)
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["lora", "cla", "cola"])
def test_merge_and_unload_unties_too(method: str) -> None:
    model = tunewise.attach(tied_model(), method, rank=2, targets=["lm_head"])
    models.stir(model, seed=1)
    inputs = {"input_ids": torch.arange(1, 9)[None]}
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(**inputs).logits, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(merged.transformer.wte.weight, tied_model().transformer.wte.weight)
    assert merged.config.tie_word_embeddings is False


def test_a_merged_model_with_other_outputs_is_not_written(trained, tmp_path: Path, monkeypatch) -> None:
    task, adapter, _ = trained("lora")
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self: self.unload(), raising=False)
    with pytest.raises(ExportError, match="the merged model gives other logits than the adapter"):
        tunewise.export(adapter, "merged", tmp_path / "m", base=task.load_model(0), batch=task.collate(list(task.test)))
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_merged_into_its_own_model_from_any_folder(
    tiny_model: Path, toy_csv: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """A relative path that means another model elsewhere; and a model that was changed in its place."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        shutil.copytree(tiny_model, folder / "model")
    changed = AutoModelForSequenceClassification.from_pretrained(there / "model")
    changed.bert.embeddings.word_embeddings.weight.data += 1
    changed.base_model.save_pretrained(there / "model")
    monkeypatch.chdir(here)
    flags = ["--model", "model", "--data", str(toy_csv), "--method", "head", "--epochs", "1", "--out", "runs"]
    assert invoke(monkeypatch, "train", *flags) == 0
    (run_folder,) = (path.parent.absolute() for path in Path("runs").glob("*/run.json"))
    monkeypatch.chdir(there)
    assert invoke(monkeypatch, "export", str(run_folder), "--to", "merged", "--out", str(tmp_path / "merged")) == 0
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    original = AutoModelForSequenceClassification.from_pretrained(here / "model")
    assert torch.equal(merged.bert.embeddings.word_embeddings.weight, original.bert.embeddings.word_embeddings.weight)
    shutil.rmtree(here / "model")
    shutil.copytree(there / "model", here / "model")
    for cached in (model_folder, model_digest, build._build):  # as in another process
        cached.cache_clear()
    capsys.readouterr()
    for command in (["export", "--to", "merged", "--out", str(tmp_path / "second")], ["bounds"]):
        assert invoke(monkeypatch, command[0], str(run_folder), *command[1:]) == 2
        assert "its files are not those that the run was made with" in capsys.readouterr().err
    assert not (tmp_path / "second").exists()
