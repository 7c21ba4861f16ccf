"""Packs of language models and of images, against each run by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny_images import save_tiny_vit, save_toy_images
from tiny_language import save_tiny_llama, save_toy_lines
from tunewise.packing.run_packed import run_packed
from tunewise.run import run
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, TrainingSpec
from tunewise.store.folders import RunStore


@pytest.mark.slow
@pytest.mark.parametrize("task", ["causal", "image"])
def test_a_packed_run_is_the_run_by_itself(task: str, tmp_path: Path) -> None:
    if task == "causal":  # grouped-query attention, tied embeddings, a loss over tokens
        model, data = save_tiny_llama(tmp_path / "model"), save_toy_lines(tmp_path / "lines.txt")
    else:
        model, data = save_tiny_vit(tmp_path / "model"), save_toy_images(tmp_path / "images")
    specs = [
        RunSpec(
            task=task,
            model=ModelSpec(path=str(model), digest="m"),
            data=DataSpec(path=str(data), digest="d"),
            method=MethodSpec(name=name, rank=3, learning_rate=1e-2, links=links),
            training=TrainingSpec(epochs=2, batch_size=8, max_length=24),
            seed=seed,
        )
        for name, seed, links in (("lora", 0, None), ("cla", 1, None), ("c-paca", 0, 2))
    ]
    alone, packed = RunStore(tmp_path / "alone"), RunStore(tmp_path / "packed")
    for spec, together in zip(specs, run_packed(specs, packed), strict=True):
        single = run(spec, alone)
        assert together.computed == ["packed with 2 other runs"]
        assert together.results.test.loss == pytest.approx(single.results.test.loss, abs=1e-6)
        one, two = (
            load_file(store.folder(spec.id) / "adapter" / "adapter_model.safetensors") for store in (alone, packed)
        )
        assert max(float(tensor.abs().max()) for name, tensor in one.items() if "lora_B" in name) > 0.01
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-5)
