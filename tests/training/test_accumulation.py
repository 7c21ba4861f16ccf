"""Gradient accumulation, checkpointing, steps instead of epochs, evaluations between: what a run computes with them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tiny import FILLER
from tiny_language import save_tiny_llama
from tunewise.errors import SpecError
from tunewise.run import run
from tunewise.spec import RunSpec
from tunewise.store.folders import RunStore
from tunewise.store.records import RunRecord


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of 2 to 9 words, so that batches have unequal numbers of target tokens."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    draw = random.Random(0)
    rows = [{"text": " ".join(draw.choices(sorted(FILLER), k=3 + i % 8))} for i in range(48)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def train(model: Path, data: Path, out: Path, method: str = "lora", **training: Any) -> tuple[RunRecord, Path]:
    spec = RunSpec.model_validate(
        {
            "task": "causal",
            "model": {"path": str(model)},
            "data": {"path": str(data), "validation_size": 8, "test_size": 8},
            "method": {"name": method, "rank": 2, "learning_rate": 1e-2},
            "training": {"epochs": 1, "batch_size": 16, **training},
        }
    )
    record = run(spec, RunStore(out))
    assert record.status == "done", record.error
    return record, out / spec.id


def adapter(folder: Path) -> dict[str, Any]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def steps(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "step"]


def test_four_batches_of_four_are_one_of_sixteen(llama: Path, texts: Path, tmp_path: Path) -> None:
    """To 1e-5 in fp32, although the batches have different numbers of target tokens."""
    _, whole = train(llama, texts, tmp_path / "whole")
    _, parts = train(llama, texts, tmp_path / "parts", batch_size=4, gradient_accumulation_steps=4)
    assert len(steps(whole)) == len(steps(parts)) == 2
    for one, other in zip(steps(whole), steps(parts), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)
    same, parts_tensors = adapter(whole), adapter(parts)
    assert max(float((same[name] - parts_tensors[name]).abs().max()) for name in same) < 1e-5


def test_a_smaller_last_step_is_a_mean_over_what_it_has(llama: Path, texts: Path, tmp_path: Path) -> None:
    """32 examples in steps of 4 x 3: the last step has two batches and 8 examples."""
    _, folder = train(llama, texts, tmp_path, batch_size=4, gradient_accumulation_steps=3)
    _, whole = train(llama, texts, tmp_path / "whole", batch_size=12)
    assert len(steps(folder)) == 3
    for one, other in zip(steps(whole), steps(folder), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)


def test_checkpointing_changes_no_number(llama: Path, texts: Path, tmp_path: Path) -> None:
    _, plain = train(llama, texts, tmp_path / "plain", method="cla")
    _, less_memory = train(llama, texts, tmp_path / "less", method="cla", gradient_checkpointing=True)
    one, other = adapter(plain), adapter(less_memory)
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-6


def test_steps_instead_of_epochs_with_evaluations_between(llama: Path, texts: Path, tmp_path: Path) -> None:
    record, folder = train(llama, texts, tmp_path, batch_size=8, max_steps=5, eval_steps=2)
    lines = list(map(json.loads, (folder / "history.jsonl").read_text().splitlines()))
    assert [line["step"] for line in lines if line["kind"] == "epoch"] == [2, 4, 5]
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [0.5, 1.0, 1.25]
    assert len(steps(folder)) == 5
    assert record.results is not None
    losses = {line["epoch"]: line["validation"]["loss"] for line in lines if line["kind"] == "epoch"}
    assert record.results.selected_epoch == min(losses, key=losses.__getitem__)


def test_moments_in_8_bits_follow_those_in_32(llama: Path, texts: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    exact, _ = train(llama, texts, tmp_path / "exact", batch_size=4)
    small, _ = train(llama, texts, tmp_path / "small", batch_size=4, optimizer="adamw_8bit")
    assert exact.results is not None and small.results is not None
    assert small.results.test.loss == pytest.approx(exact.results.test.loss, abs=0.02)


def test_a_link_in_epochs_needs_epochs() -> None:
    with pytest.raises(SpecError, match="restart_every counts epochs"):
        RunSpec.model_validate(
            {
                "model": {"path": "m"},
                "data": {"path": "d"},
                "method": {"name": "c3la", "restart_every": 1},
                "training": {"max_steps": 10},
            }
        )
