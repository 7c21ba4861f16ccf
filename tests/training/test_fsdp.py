"""One run on two processes that share the weights too (FSDP2 on gloo, as `accelerate launch` starts them): the same as
on one, to 1e-5, at the same global batch; and its files are those of one."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from peft import PeftModel
from torch import nn
from transformers import AutoModelForSequenceClassification

from command_line import invoke
from launched import flags, same, together
from tunewise.errors import StoreError
from tunewise.planning import make_plan
from tunewise.run import run
from tunewise.spec import CompareSpec, parse
from tunewise.store.folders import RunStore
from tunewise.training.ranks import ALONE, Ranks, joined
from tunewise.training.trajectory import TRAJECTORY, Keep, snapshots

FSDP = "--use_fsdp --fsdp_version=2 --num_processes=2 --num_machines=1 --dynamo_backend=no --mixed_precision=no"


def sharded(*words: str, more: str = "") -> subprocess.Popen[str]:
    return together(*words, launcher=f"{FSDP} {more}")


def finished(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    return said


def killed_after_a_checkpoint(process: subprocess.Popen[str], out: Path) -> None:
    deadline = time.monotonic() + 300
    while not any(out.glob("*/checkpoints/checkpoint-*/checksums.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        one.kill()
    process.communicate(timeout=60)
    assert RunStore(out).records() == []


def words_of(method: str, model: Path, data: Path, **more: Any) -> list[str]:
    return flags(model, data, method, **({"learning-rate": 1e-3} if method == "fft" else {}) | more)


def test_sharded_processes_train_what_one_does(
    calm: Path,
    toy_csv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A chain of columns of the weights themselves: three restarts that read W0's columns, and an export that takes
    them away again. Stock PEFT gives the run's own predictions from it."""
    words = words_of("c-paca", calm, toy_csv, epochs=2)
    assert invoke(monkeypatch, *words, f"--out={tmp_path / 'one'}") == 0
    said = " ".join(finished(sharded(*words, f"--out={tmp_path / 'two'}")).split())
    assert "batches and weights shared by 2 processes" in said
    same(tmp_path / "one", tmp_path / "two", "of every batch and of the weights (FSDP2)")
    (one,), (two,) = (RunStore(tmp_path / name).records() for name in ("one", "two"))
    notes = [json.loads((tmp_path / n / one.id / "adapter" / "tunewise.json").read_text()) for n in ("one", "two")]
    assert notes[0] == notes[1] and notes[0]["base"]  # one base model, by its weights' hash
    assert two.check is not None and two.check.loader == "peft.PeftModel.from_pretrained"
    base = AutoModelForSequenceClassification.from_pretrained(calm, num_labels=3)
    stock = PeftModel.from_pretrained(base, str(tmp_path / "two" / two.id / "adapter"))
    factors = {name: p for name, p in stock.named_parameters() if ".lora_B." in name}
    assert len(factors) == 4 and all(p.shape == (32, 16) and bool(p.abs().max() > 1e-3) for p in factors.values())


def _run_of(model: Path, data: Path, method: str) -> dict[str, Any]:
    return {
        "model": str(model),
        "data": str(data),
        "methods": [method],
        "reference": method,
        "rank": 4,
        "seeds": 1,
        "training": {"epochs": 2, "batch_size": 16, "max_length": 16, "learning_rate": 5e-3},
    }


def test_a_trajectory_is_kept_of_shards(calm: Path, toy_csv: Path, tmp_path: Path) -> None:
    """In one process, whose shard is everything: each snapshot is that of a model that was never cut, to 1e-4 (columns
    beside W rather than in it, and Adam divides by small gradients)."""
    spec = parse(CompareSpec, _run_of(calm, toy_csv, "r-c3la"))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        kept = []
        for name, among in (("plain", ALONE), ("cut", Ranks(sharded=True))):
            store = RunStore(tmp_path / name)
            plan = make_plan(spec, store)
            record = run(plan.runs[0], store, task=plan.task, among=among, trajectory=Keep(3))
            kept.append(snapshots(store.folder(record.id) / TRAJECTORY))
    finally:
        among.leave()
    assert [one.step for one in kept[0]] == [one.step for one in kept[1]] and len(kept[0]) == 4
    for plain, cut in zip(*kept, strict=True):
        cut.check()
        here, there = plain.tensors(), cut.tensors()
        assert here.keys() == there.keys()
        assert all(torch.allclose(there[key].float(), here[key].float(), rtol=0, atol=1e-4) for key in here)
    assert any(key.startswith("link.2.b.") for key in here)  # the last of the snapshots lies three restarts in


def _threads() -> int:
    """Of gloo's, how many run in this process."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            names.append((task / "comm").read_text())
    return sum("gloo" in name for name in names)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted as Linux shows them")
@pytest.mark.parametrize("end", ["done", "error", "error from an error"])
def test_the_group_and_its_threads_are_gone_at_the_end(
    end: str, calm: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread of gloo's that still holds a tensor when Python shuts down aborts the process, after all its work."""
    spec = parse(CompareSpec, _run_of(calm, toy_csv, "lora"))
    among = Ranks(sharded=True)
    before = _threads()

    def join() -> Ranks:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        return among

    monkeypatch.setattr("tunewise.training.ranks._ranks", join)

    def work() -> None:
        store = RunStore(tmp_path)
        plan = make_plan(spec, store)
        run(plan.runs[0], store, task=plan.task, among=among)
        model = nn.Linear(4, 4)
        among.shard(model)
        dist.all_reduce(torch.ones(3))
        assert _threads() > before
        if end == "error from an error":
            raise ValueError("of a frame that holds a model")
        if end == "error":
            raise StoreError("of a frame that holds a model")

    with pytest.raises(StoreError) if end != "done" else contextlib.nullcontext(), joined() as those:
        assert those is among
        try:
            work()
        except ValueError:
            raise StoreError("in plain words") from None
    assert not dist.is_initialized()
    deadline = time.monotonic() + 10
    while _threads() > before and time.monotonic() < deadline:  # who has been joined is listed for a moment longer
        time.sleep(0.01)
    assert _threads() == before


def test_the_group_of_somebody_else_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with joined() as among:
            assert among is ALONE
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "cla", "c3la", "paca", "cola", "cla-rows", "lora-one", "head", "fft"])
def test_each_way_of_training_is_the_same_in_shards(
    method: str,
    calm: Path,
    toy_csv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = words_of(method, calm, toy_csv)
    assert invoke(monkeypatch, *words, f"--out={tmp_path / 'one'}") == 0
    finished(sharded(*words, f"--out={tmp_path / 'two'}"))
    same(tmp_path / "one", tmp_path / "two", "of every batch and of the weights (FSDP2)")


@pytest.mark.slow
@pytest.mark.parametrize("ways", ["sharded sharded", "sharded alone", "alone sharded"])
@pytest.mark.parametrize("method", ["c-paca", "fft"])
def test_what_was_killed_goes_on_from_the_checkpoint_of_either(
    method: str,
    ways: str,
    calm: Path,
    toy_csv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGKILL of all processes within a link; then to the end on as many, or on another number of them."""
    words = words_of(method, calm, toy_csv, **{"save-every": 5, "epochs": 15})
    assert invoke(monkeypatch, *words, f"--out={tmp_path / 'one'}") == 0
    out = tmp_path / "two"
    first, then = ways.split()
    if first == "sharded":
        process = sharded(*words, f"--out={out}")
    else:
        start = [sys.executable, "-m", "tunewise", *words, f"--out={out}"]
        process = subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    killed_after_a_checkpoint(process, out)
    if then == "sharded":
        assert "from step" in finished(sharded(*words, f"--out={out}"))
    else:
        assert invoke(monkeypatch, *words, f"--out={out}") == 0
    same(tmp_path / "one", out, "of every batch and of the weights (FSDP2)")  # in one of the two launches, or both
    assert subprocess.run([sys.executable, "-m", "tunewise", "runs", "verify", str(out)], check=False).returncode == 0


@pytest.mark.slow
def test_what_is_not_offered_is_refused_in_one_line(calm: Path, toy_csv: Path, tmp_path: Path) -> None:
    process = sharded(*flags(calm, toy_csv, "peft:dora", out=tmp_path))
    said, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert said.count("method 'peft:dora' keeps tensors in forms of its own") == 1, said
    assert RunStore(tmp_path).ids() == []
