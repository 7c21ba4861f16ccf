"""Which device runs take, with a faked list of GPUs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tunewise import device
from tunewise.errors import SpecError
from tunewise.spec import DataSpec, ExecutionOptions, MethodSpec, ModelSpec, RunSpec
from tunewise.store.folders import RunStore
from tunewise.study.executors import make_executor, with_default_jobs
from tunewise.study.executors.base import Job
from tunewise.study.resources import SideBySide, side_by_side
from tunewise.training.events import Listener


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """Make torch see so many GPUs."""

    def fake(count: int, visible: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return fake


def devices_of_workers(
    options: ExecutionOptions, runs: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Any]:
    """`CUDA_VISIBLE_DEVICES` in the environment that each worker is started with."""
    seen: list[Any] = []

    class Process:
        def __init__(self, *_: object, env: dict[str, str], **__: object) -> None:
            seen.append(env.get("CUDA_VISIBLE_DEVICES"))

        def poll(self) -> int:
            return 0

    executor = make_executor(with_default_jobs(options), RunStore(folder), Listener())
    monkeypatch.setattr(subprocess, "Popen", Process)
    spec = RunSpec(model=ModelSpec(path="m"), data=DataSpec(path="d"), method=MethodSpec(name="lora"))
    for _ in range(min(runs, executor.capacity)):
        executor.start(Job(spec))
    return seen


def test_each_process_has_a_gpu_of_its_own(gpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(3)
    assert devices_of_workers(ExecutionOptions(), 9, tmp_path, monkeypatch) == ["0", "1", "2"]


def test_more_processes_than_gpus_share_them_evenly(gpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(2, visible="5,GPU-7")
    assert devices_of_workers(ExecutionOptions(jobs=4), 9, tmp_path, monkeypatch) == ["5", "GPU-7", "5", "GPU-7"]
    assert side_by_side(ExecutionOptions(jobs=3), 9) == SideBySide(3, 2)


def test_processes_on_cpus_see_what_their_parent_sees(gpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(0)
    assert devices_of_workers(ExecutionOptions(jobs=2), 9, tmp_path, monkeypatch) == [None, None]


@pytest.mark.parametrize(
    ("count", "options", "jobs"),
    [
        (4, {}, 4),
        (4, {"jobs": 2}, 2),
        (4, {"executor": "processes"}, 4),
        (4, {"executor": "serial"}, None),
        (1, {}, None),
        (0, {}, None),
    ],
)
def test_there_is_a_process_for_each_of_several_gpus(
    gpus, count: int, options: dict[str, Any], jobs: int | None
) -> None:
    gpus(count)
    assert with_default_jobs(ExecutionOptions(**options)).jobs == jobs


def test_a_device_that_is_asked_for_is_taken_and_given_back(gpus) -> None:
    gpus(2)
    assert device.device_type() == "cuda" and device.gpus() == ["0", "1"]
    with device.use_device("cpu"):
        assert device.device_type() == "cpu" and device.gpus() == []
        assert os.environ["TUNEWISE_DEVICE"] == "cpu"  # what workers inherit
        assert with_default_jobs(ExecutionOptions()).jobs is None
    assert device.device_type() == "cuda"


def test_a_device_that_is_not_there_is_refused(gpus) -> None:
    gpus(0)
    assert device.device_type() == "cpu"
    with pytest.raises(SpecError, match="device cuda: this machine has none"), device.use_device("cuda"):
        pass
