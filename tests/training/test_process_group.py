"""One run on two processes (gloo, as torchrun starts them): the same as on one, to 1e-5, at the same global batch."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from command_line import invoke
from launched import flags, free_port, same, together
from tunewise.cli.main import run as command
from tunewise.errors import SpecError, StoreError
from tunewise.store.folders import RunStore
from tunewise.training.process_group import SINGLE_PROCESS, BatchShares, ProcessGroup, join_process_group


def test_shares_are_one_process_batches_cut_in_pieces() -> None:
    """Also the last and smaller batch, of which not everybody has a share."""
    whole = BatchShares(22, 7, 3, SINGLE_PROCESS)
    parts = [BatchShares(22, 7, 3, ProcessGroup(rank, 3)) for rank in range(3)]
    for epoch in range(2):
        for shares in (whole, *parts):
            shares.set_epoch(epoch)
        cut = [list(shares) for shares in parts]
        for step, batch in enumerate(whole):
            pieces = [cut[rank][step] for rank in range(3) if parts[rank].has_examples(step)]
            assert sorted(i for piece in pieces for i in piece) == sorted(batch)
        assert len(batch) == 1 and [shares.has_examples(3) for shares in parts] == [True, False, False]
        assert all(len(pieces) == len(whole) == 4 for pieces in cut)
    assert next(iter(whole)) != next(iter(BatchShares(22, 7, 4, SINGLE_PROCESS)))


def test_one_method_and_one_seed_are_asked_for(
    calm: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"model: {calm}\ndata: {toy_csv}\nmethods: [lora, cla]\nseeds: 3\n")
    assert invoke(monkeypatch, "train", str(spec)) == 2
    assert "train takes one method: give --method, one of lora, cla" in capsys.readouterr().err
    assert invoke(monkeypatch, "train", str(spec), "--method=cla") == 2
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
    assert invoke(monkeypatch, *words) == 0
    (record,) = RunStore(tmp_path / "runs").records()
    assert (record.spec.method.name, record.spec.method.rank, record.spec.seed) == ("cla", 2, 1)
    assert record.spec.learning_rate == 0.01 and record.processes == 1
    said = capsys.readouterr().out
    assert f"adapter  {tmp_path / 'runs' / record.id / 'adapter'}" in said.replace("\n", " ") and "test: loss" in said


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "FSDP is not supported; launch with data parallelism"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "--mixed_precision bf16: runs compute in the model's own precision"),
    ],
    ids=["fsdp", "deepspeed", "precision"],
)
def test_what_a_launcher_asks_for_and_runs_have_not_is_refused(
    told: dict[str, str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any process joins another."""
    for key, value in {"WORLD_SIZE": "2", **told}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(SpecError, match=line), join_process_group():
        pass


def _threads() -> int:
    """Of gloo's, how many run in this process."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            names.append((task / "comm").read_text())
    return sum("gloo" in name for name in names)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted as Linux shows them")
@pytest.mark.parametrize("end", ["done", "error", "error from an error"])
def test_the_group_and_its_threads_are_gone_at_the_end(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of gloo's that still holds a tensor when Python shuts down aborts the process, after all its work."""
    before = _threads()

    def join() -> ProcessGroup:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        return SINGLE_PROCESS

    monkeypatch.setattr("tunewise.training.process_group._connect", join)

    def work() -> None:
        model = DistributedDataParallel(nn.Linear(4, 4))
        model(torch.ones(2, 4)).sum().backward()
        dist.all_reduce(torch.ones(3))
        assert _threads() > before
        if end == "error from an error":
            raise ValueError("of a frame that holds a model")
        if end == "error":
            raise StoreError("of a frame that holds a model")

    with pytest.raises(StoreError) if end != "done" else contextlib.nullcontext(), join_process_group() as those:
        assert those is SINGLE_PROCESS
        try:
            work()
        except ValueError:
            raise StoreError("in plain words") from None
    assert not dist.is_initialized()
    deadline = time.monotonic() + 10
    while _threads() > before and time.monotonic() < deadline:  # who has been joined is listed for a moment longer
        time.sleep(0.01)
    assert _threads() == before


def test_the_group_of_somebody_else_is_left_alone() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with join_process_group() as process_group:
            assert process_group is SINGLE_PROCESS
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def _train(rank: int, port: int, words: list[str], folder: Path) -> None:
    """As torchrun starts it, but forked from this process, which has the libraries loaded."""
    PartialState._reset_state()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.chdir(folder)
    sys.argv = ["tunewise", *words]
    with Path("errors.txt").open("w") as sys.stderr:
        command()


def test_an_error_of_one_process_is_that_of_the_first_and_ends_both(calm: Path, toy_csv: Path, tmp_path: Path) -> None:
    """A node without the data: the first process says whose error it is; nobody waits for anybody."""
    here = [tmp_path / "0", tmp_path / "1"]
    for folder in here:
        folder.mkdir()
    (here[0] / "toy.csv").write_bytes(toy_csv.read_bytes())
    words = [*flags(calm, Path("toy.csv"), "lora"), f"--out={tmp_path / 'runs'}"]
    port = free_port()
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_train, args=(rank, port, words, here[rank])) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [2, 2]
    said = "".join((folder / "errors.txt").read_text() for folder in here)
    (line,) = [line for line in said.splitlines() if line.startswith("error")]
    assert line.startswith("error: process 1: toy.csv: no such file")


@pytest.mark.slow
def test_what_one_process_lacks_is_said_once_and_ends_all(calm: Path, toy_csv: Path, tmp_path: Path) -> None:
    """The same under torchrun."""
    script = tmp_path / "node.sh"
    here = [tmp_path / "0" / "toy.csv", tmp_path / "1"]
    here[1].mkdir()
    here[0].parent.mkdir()
    here[0].write_bytes(toy_csv.read_bytes())
    words = " ".join(flags(calm, Path("toy.csv"), "lora"))
    script.write_text(f"cd {tmp_path}/$RANK && exec {sys.executable} -m tunewise {words} --out={tmp_path / 'runs'}")
    process = together("bash", str(script), launcher="torchrun --no-python")
    said, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    (line,) = [line for line in said.splitlines() if line.startswith("error")]
    assert line.startswith("error: process 1: toy.csv: no such file")
    assert "exitcode  : 2" in said and "Connection closed" not in said


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "c3la", "cola", "fft"])
def test_two_processes_train_what_one_does(
    method: str, calm: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """78 examples in batches of 7: shares of 4 and 3, and a last batch of 1, of which the second process has none.
    Chains restart in step: they would part from one process's at once if they did not."""
    words = flags(calm, toy_csv, method, **({"learning-rate": 1e-3} if method == "fft" else {}))
    assert invoke(monkeypatch, *words, f"--out={tmp_path / 'one'}") == 0
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
    assert invoke(monkeypatch, *words, f"--out={tmp_path / 'one'}") == 0
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
