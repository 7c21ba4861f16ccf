"""One run on two processes (gloo, as torchrun starts them): the same as on one, to 1e-5, at the same global batch."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny import save_tiny_model
from tunewise.cli.main import run as tunewise
from tunewise.store.folders import RunStore
from tunewise.training.ranks import ALONE, Ranks, Shares

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without dropout, whose draws would differ with the shape of a batch; and with weights so large
    that gradients stand well above rounding, which Adam would else make into steps of full length."""
    folder = save_tiny_model(tmp_path_factory.mktemp("calm") / "model")
    weights = load_file(folder / "model.safetensors")
    save_file({key: 8 * w if w.dim() == 2 else w for key, w in weights.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def flags(model: Path, data: Path, method: str, **more: Any) -> list[str]:
    given = {"epochs": 3, "batch-size": 7, "learning-rate": 5e-3, "max-length": 16, "rank": 4, **more}
    return [
        "train",
        f"--model={model}",
        f"--data={data}",
        f"--method={method}",
        *(f"--{key}={value}" for key, value in given.items()),
    ]


def alone(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tunewise", *words])
    with pytest.raises(SystemExit) as stop:
        tunewise()
        raise SystemExit(0)
    return int(stop.value.code or 0)


def together(*words: str, launcher: str = "torchrun") -> subprocess.Popen[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if launcher == "torchrun":
        start = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}", "-m", "tunewise"]
    else:
        start = ["-m", "accelerate.commands.launch", *launcher.split(), f"--main_process_port={port}", "-m", "tunewise"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *start, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def same(one: Path, two: Path) -> None:
    """Records, histories and adapters of the one run in two stores."""
    (first,), (second,) = RunStore(one).records(), RunStore(two).records()
    assert first.id == second.id and second.status == "done"
    assert second.computed == ["trained by 2 processes, each with a share of every batch"]
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


def test_shares_are_one_process_batches_cut_in_pieces() -> None:
    """Also the last and smaller batch, of which not everybody has a share."""
    whole = Shares(22, 7, 3, ALONE)
    parts = [Shares(22, 7, 3, Ranks(rank, 3)) for rank in range(3)]
    for epoch in range(2):
        for shares in (whole, *parts):
            shares.set_epoch(epoch)
        cut = [list(shares) for shares in parts]
        for step, batch in enumerate(whole):
            pieces = [cut[rank][step] for rank in range(3) if parts[rank].counts(4 * epoch + step)]
            assert sorted(i for piece in pieces for i in piece) == sorted(batch)
        assert len(batch) == 1 and [shares.counts(3) for shares in parts] == [True, False, False]
        assert all(len(pieces) == len(whole) == 4 for pieces in cut)
    assert next(iter(whole)) != next(iter(Shares(22, 7, 4, ALONE)))


def test_one_method_and_one_seed_are_asked_for(
    calm: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"model: {calm}\ndata: {toy_csv}\nmethods: [lora, cla]\nseeds: 3\n")
    assert alone(monkeypatch, "train", str(spec)) == 2
    assert "train takes one method: give --method, one of lora, cla" in capsys.readouterr().err
    assert alone(monkeypatch, "train", str(spec), "--method=cla") == 2
    assert "train takes one seed: give --seed, one of 0, 1, 2" in capsys.readouterr().err


def test_a_file_and_flags_are_one_run(
    calm: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        f"model: {calm}\ndata: {toy_csv}\nmethods: [lora, {{name: cla, learning_rate: 0.1}}]\nseeds: 3\nrank: 2\n"
        "training: {epochs: 1, max_length: 16}\n"
    )
    words = ("train", str(spec), "--method=cla", "--seed=1", "--learning-rate=0.01", f"--out={tmp_path / 'runs'}")
    assert alone(monkeypatch, *words) == 0
    (record,) = RunStore(tmp_path / "runs").records()
    assert (record.spec.method.name, record.spec.method.rank, record.spec.seed) == ("cla", 2, 1)
    assert record.spec.learning_rate == 0.01 and record.computed == []
    said = capsys.readouterr().out
    assert f"adapter  {tmp_path / 'runs' / record.id / 'adapter'}" in said.replace("\n", " ") and "test: loss" in said


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "c3la", "cola", "fft"])
def test_two_processes_train_what_one_does(
    method: str, calm: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """78 examples in batches of 7: shares of 4 and 3, and a last batch of 1, of which the second process has none.
    Chains restart in step: they would part from one process's at once if they did not."""
    words = flags(calm, toy_csv, method, **({"learning-rate": 1e-3} if method == "fft" else {}))
    assert alone(monkeypatch, *words, f"--out={tmp_path / 'one'}") == 0
    process = together(*words, f"--out={tmp_path / 'two'}")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "shared by 2 processes" in said
    same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_two_processes_stop_and_go_on_together(
    calm: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within a link of a chain, all of them; then to the end, from the checkpoint: still as one process."""
    words = flags(calm, toy_csv, "r-c3la", **{"save-every": 5, "epochs": 30})
    assert alone(monkeypatch, *words, f"--out={tmp_path / 'one'}") == 0
    out = tmp_path / "two"
    process = together(*words, f"--out={out}")
    deadline = time.monotonic() + 200
    while not any(out.glob("*/checkpoints/checkpoint-*/checksums.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)  # torchrun ends its processes
    process.communicate(timeout=60)
    assert RunStore(out).records() == []
    process = together(*words, f"--out={out}")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "from step" in said
    same(tmp_path / "one", out)
    assert subprocess.run([sys.executable, "-m", "tunewise", "runs", "verify", str(out)], check=False).returncode == 0


@pytest.mark.slow
def test_sharded_weights_are_refused_in_one_line(calm: Path, toy_csv: Path, tmp_path: Path) -> None:
    words = flags(calm, toy_csv, "cla", out=tmp_path)
    process = together(*words, launcher="--use_fsdp --fsdp_version=2 --num_processes=2 --mixed_precision=no")
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert said.count("error: FSDP shards the weights") == 1, said
    assert RunStore(tmp_path).ids() == []
