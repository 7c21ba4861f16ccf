"""Adapter folders: whole or not at all, one adapter of several, and every kind of damage told as what it is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import tunewise
from contracts import models
from tunewise.errors import StoreError

WEIGHTS, CONFIG, SIDECAR = "adapter_model.safetensors", "adapter_config.json", "tunewise.json"


def saved(folder: Path, name: str = "cla", **options: Any) -> Any:
    model = tunewise.attach(models.make("bert"), name, rank=4, **options)
    models.stir(model)
    tunewise.save(model, folder)
    return model


def test_the_folder_holds_a_stock_adapter_and_the_sidecar(tmp_path):
    saved(tmp_path / "adapter")
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {WEIGHTS, CONFIG, SIDECAR}
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]


def test_names_in_the_configuration_are_in_order(tmp_path):
    """PEFT holds them in a set, whose order is another one in every process."""
    model = tunewise.attach(models.make("bert"), "lora", rank=2, targets="all-linear")
    written = json.loads((tunewise.save(model, tmp_path / "adapter") / "adapter_config.json").read_text())
    assert len(written["target_modules"]) == 6 * models.LAYERS
    assert written["target_modules"] == sorted(written["target_modules"])


def test_saving_again_replaces_the_folder_whole(tmp_path):
    saved(tmp_path / "adapter")
    (tmp_path / "adapter" / "stray.txt").write_text("of an earlier run")
    model = saved(tmp_path / "adapter", "r-cla", seed=2)
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {WEIGHTS, CONFIG, SIDECAR}
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]
    loaded = tunewise.load(models.make("bert"), tmp_path / "adapter")
    inputs = models.batch("bert")
    torch.testing.assert_close(models.logits(loaded, inputs), models.logits(model, inputs), rtol=0, atol=1e-5)


def test_each_of_two_adapters_is_saved_by_its_name(tmp_path):
    """With its own head; loaded by PEFT and to train on, 1e-5."""
    model, inputs = tunewise.attach(models.make("bert"), "cla", rank=4), models.batch("bert")
    models.stir(model, only="")
    model = tunewise.attach(model, "cola", rank=3, adapter_name="other")
    models.stir(model, only="", seed=8)
    tunewise.restart(model)
    models.stir(model, seed=9)
    for name in ("default", "other"):
        model.set_adapter(name)
        expected = models.logits(model, inputs)
        folder = tunewise.save(model, tmp_path / name, adapter_name=name)
        assert {file.name for file in folder.iterdir()} == {WEIGHTS, CONFIG, SIDECAR}
        for loaded in (
            PeftModel.from_pretrained(models.make("bert"), str(folder)),
            tunewise.load(models.make("bert"), folder, trainable=True),
        ):
            torch.testing.assert_close(models.logits(loaded, inputs), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["cla", "lora", "fft", "head"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_model_is_not_saved_and_nothing_is_left_behind(name, value, tmp_path):
    model = tunewise.attach(models.make("bert"), name, rank=4)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).view(-1)[0] = value
    with pytest.raises(StoreError, match="diverged"):
        tunewise.save(model, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:500])


def drop_a_tensor(file: Path) -> None:
    tensors = load_file(file)
    tensors.pop(next(key for key in tensors if "lora_B" in key))
    save_file(tensors, file, metadata={"format": "pt"})


def add_a_tensor(file: Path) -> None:
    save_file({**load_file(file), "base_model.model.nowhere.lora_A.weight": torch.zeros(4, 32)}, file)


def another_shape(file: Path) -> None:
    tensors = load_file(file)
    key = next(key for key in tensors if "lora_B" in key)
    save_file({**tensors, key: torch.zeros(33, 4)}, file)


def not_a_selector(file: Path) -> None:
    tensors = load_file(file)
    key = next(key for key in tensors if "lora_A" in key)
    save_file({**tensors, key: torch.full_like(tensors[key], 0.5)}, file)


def another_format(file: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))


DAMAGE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "weights cut short": (WEIGHTS, cut, "read|damaged|invalid"),
    "weights absent": (WEIGHTS, Path.unlink, "read|missing|absent|no such"),
    "a tensor missing": (WEIGHTS, drop_a_tensor, "lora_B"),
    "a tensor too many": (WEIGHTS, add_a_tensor, "nowhere"),
    "a tensor of another shape": (WEIGHTS, another_shape, "fit|shape"),
    "config absent": (CONFIG, Path.unlink, "adapter_config"),
    "config cut short": (CONFIG, lambda file: file.write_text(file.read_text()[:40]), "adapter_config|read"),
    "sidecar absent": (SIDECAR, Path.unlink, "tunewise.json"),
    "sidecar cut short": (SIDECAR, lambda file: file.write_text(file.read_text()[:40]), "read"),
    "sidecar of another format": (SIDECAR, another_format, "99"),
    "a selector that selects nothing": (WEIGHTS, not_a_selector, "selector"),
}


# What comes through as another library's error, or not at all, when loading for use (False) or to train on (True).
@pytest.mark.parametrize(
    ("damage", "trainable"),
    [
        pytest.param(
            damage,
            trainable,
        )
        for damage in DAMAGE
        for trainable in (False, True)
        # To train on, PEFT's config is not read; for use, a factor is a factor.
        if (damage, trainable) not in {("config absent", True), ("config cut short", True)}
        and (damage, trainable) != ("a selector that selects nothing", False)
    ],
)
def test_a_damaged_folder_is_told_as_one(damage, trainable, tmp_path):
    """`StoreError`, in one line."""
    file, hurt, words = DAMAGE[damage]
    saved(tmp_path / "adapter")
    hurt(tmp_path / "adapter" / file)
    with pytest.raises(StoreError, match=f"(?i){words}") as caught:
        tunewise.load(models.make("bert"), tmp_path / "adapter", trainable=trainable)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("name", ["cla", "paca", "lora"])
def test_another_base_model_is_refused(name, trainable, tmp_path):
    saved(tmp_path / "adapter", name)
    with pytest.raises(StoreError, match="another base"):
        tunewise.load(models.make("bert", seed=9), tmp_path / "adapter", trainable=trainable)


def test_the_same_base_in_bf16_is_accepted(tmp_path):
    saved(tmp_path / "adapter")
    tunewise.load(models.make("bert").to(torch.bfloat16), tmp_path / "adapter")


def test_a_base_that_was_trained_while_folded_is_still_the_same_base(tmp_path):
    """The fingerprint is that of W0, whenever it is taken."""
    model = saved(tmp_path / "early")
    models.train(model, models.batch("bert"), steps=3)
    tunewise.save(model, tmp_path / "late")
    early, late = (json.loads((tmp_path / name / SIDECAR).read_text())["base"] for name in ("early", "late"))
    assert early == late


@pytest.mark.parametrize(("name", "rank"), [("lora", 2), ("cla-rows", 4)])
def test_trained_rows_are_taken_from_trained_rows_of_the_same_rank_alone(name, rank):
    """Other factors would be taken in part: the rows would be those of B's largest entries, or a second half lost."""
    other = tunewise.attach(models.make("bert"), name, rank=rank)
    models.stir(other)
    model = tunewise.attach(models.make("bert"), "cla-rows", rank=2)
    before = models.logits(model, models.batch("bert"))
    with pytest.raises(StoreError, match="does not select 2 rows"):
        model.load_state_dict(other.state_dict())
    torch.testing.assert_close(models.logits(model, models.batch("bert")), before, rtol=0, atol=0)
