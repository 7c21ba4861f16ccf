"""Runs of the command line in one process and in several, and what makes two of them the same run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tunewise.store.folders import RunStore

TOLERANCE = 1e-5


def flags(model: Path, data: Path, method: str, **more: Any) -> list[str]:
    given = {"epochs": 3, "batch-size": 7, "learning-rate": 5e-3, "max-length": 16, "rank": 4, **more}
    return [
        "train",
        f"--model={model}",
        f"--data={data}",
        f"--method={method}",
        *(f"--{key}={value}" for key, value in given.items()),
    ]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def together(*words: str, launcher: str = "torchrun") -> subprocess.Popen[str]:
    port = free_port()
    if launcher.startswith("torchrun"):
        what = ["--no-python"] if "--no-python" in launcher else ["-m", "tunewise"]
        start = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}", *what]
    else:
        start = ["-m", "accelerate.commands.launch", *launcher.split(), f"--main_process_port={port}", "-m", "tunewise"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *start, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def same(one: Path, two: Path) -> None:
    """Records, histories and adapters of one run in two stores, where two processes trained the second."""
    (first,), (second,) = RunStore(one).records(), RunStore(two).records()
    assert first.id == second.id and second.status == "done"
    assert second.processes == 2
    for split in ("train", "validation", "test"):
        here, there = getattr(first.results, split), getattr(second.results, split)
        assert there.loss == pytest.approx(here.loss, abs=TOLERANCE)
        assert there.examples == here.examples
    assert first.results.selected_epoch == second.results.selected_epoch
    lines = [
        [json.loads(line) for line in (root / first.id / "history.jsonl").read_text().splitlines()]
        for root in (one, two)
    ]
    assert [line["kind"] for line in lines[0]] == [line["kind"] for line in lines[1]]
    for here, there in zip(*lines, strict=True):
        if here["kind"] == "step":
            assert there["step"] == here["step"] and there["learning_rate"] == here["learning_rate"]
            assert there["loss"] == pytest.approx(here["loss"], abs=TOLERANCE)
    (name,) = [f.name for f in (one / first.id / "adapter").glob("*.safetensors")]
    here, there = (load_file(root / first.id / "adapter" / name) for root in (one, two))
    assert here.keys() == there.keys()
    moved = 0.0
    for key, tensor in here.items():
        if key.endswith("key.bias"):
            continue  # no loss depends on it: its gradient is rounding alone, of which Adam makes whole steps
        assert torch.allclose(tensor, there[key], rtol=0, atol=TOLERANCE), key
        moved = max(moved, float(tensor.abs().max()))
    assert moved > 100 * TOLERANCE  # it has learnt something that could differ
    assert not (two / first.id / "checkpoints").exists()
