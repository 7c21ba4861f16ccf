"""Faults that meet a run while it trains: killed, stopped, out of memory, numbers that are none. What is finished stays,
and the others go on."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from test_run import CHILD, make_spec
from tiny import save_tiny_model
from tunewise.errors import DivergedError
from tunewise.measures._tensor_cache import read_tensors, save_tensors
from tunewise.methods.attach import attach
from tunewise.run import run
from tunewise.spec import RunSpec
from tunewise.store.folders import RunStore
from tunewise.store.verification import faults_of_run
from tunewise.training import checkpoints
from tunewise.training.events import Event, Listener, RunStarted, StepDone
from tunewise.training.optimizers import optimizer

COMMAND = "import sys; sys.argv[0] = 'tunewise'; import torch; torch.set_num_threads(1); "
COMMAND += "from tunewise.cli.main import run; run()"


def interrupted(spec: RunSpec, folder: Path, in_a_save: bool, after: float, draw: random.Random) -> bool:
    """Start the run in a process of its own and SIGKILL it: some time after it began to train, or while a checkpoint is
    being written. Whether it was still running."""
    place = folder / spec.id
    child = subprocess.Popen([sys.executable, "-c", CHILD, spec.model_dump_json(), str(folder)])
    known = {one.name for one in place.glob("checkpoints/*")}
    begun = None
    while child.poll() is None:
        if begun is None and (place / "history.jsonl").exists():
            begun = time.monotonic()
        if in_a_save and {one.name for one in place.glob("checkpoints/*")} - known:
            time.sleep(draw.uniform(0, 0.02))
            break
        if not in_a_save and begun is not None and time.monotonic() - begun > after:
            break
        time.sleep(0.001)
    was_running = child.poll() is None
    child.kill()
    child.wait()
    return was_running


@pytest.mark.slow
def test_killed_again_and_again_no_run_is_unreadable_and_at_most_one_interval_is_lost(
    tiny_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    """Twelve kills of four runs of three epochs, half of them inside a save; the runs end with the same weights as
    without."""
    draw = random.Random(8)
    killed = 0
    for number, method in enumerate(("c3la", "lora", "paca", "fft")):
        spec = make_spec(tiny_model, toy_csv, method, epochs=3, save_every=3)
        whole = run(spec, RunStore(tmp_path / f"whole {number}"))
        root = tmp_path / f"killed {number}"
        store = RunStore(root)
        for kill in range(3):
            before = checkpoints.latest(store.folder(spec.id) / "checkpoints")
            killed += interrupted(spec, root, in_a_save=(number + kill) % 2 == 0, after=draw.uniform(0, 2), draw=draw)
            after = checkpoints.latest(store.folder(spec.id) / "checkpoints")
            if store.finished(spec.id) is None and before is not None:
                assert after is not None and checkpoints.step_of(after) >= checkpoints.step_of(before)
        history = store.folder(spec.id) / "history.jsonl"
        steps = [json.loads(line)["step"] for line in history.read_text().splitlines()[:-1]]
        kept = checkpoints.latest(store.folder(spec.id) / "checkpoints")
        if store.finished(spec.id) is None and steps:
            assert max(steps) - (checkpoints.step_of(kept) if kept else 0) <= 3 + 1
        again = run(spec, store)
        assert again.status == "done" and again.results == whole.results and again.files == whole.files
        assert faults_of_run(store, spec.id) == []
    assert killed >= 8


class Poison(Listener):
    """After a given step, the embedded inputs of the next batch hold one NaN."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.monkeypatch, self.after, self.steps = monkeypatch, after, 0

    def on(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.steps = 0
            self.monkeypatch.undo()
        if isinstance(event, StepDone):
            self.steps = event.step
            if event.step == self.after:
                plain = torch.nn.Embedding.forward

                def poisoned(layer: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
                    out = plain(layer, ids).clone()
                    out[(0,) * out.dim()] = float("nan")
                    return out

                self.monkeypatch.setattr(torch.nn.Embedding, "forward", poisoned)


@pytest.mark.parametrize("method", ["cla", "fft"])
def test_a_poisoned_batch_ends_the_run_within_its_step_as_diverged(
    method: str, tiny_model: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, store = make_spec(tiny_model, toy_csv, method), RunStore(tmp_path)
    poison = Poison(monkeypatch, after=4)
    record = run(spec, store, listener=poison)
    monkeypatch.undo()
    assert record.status == "diverged" and record.results is None
    assert poison.steps == 4 and "at step 5" in str(record.error)
    assert not (store.folder(spec.id) / "adapter").exists()


def test_factors_that_run_away_end_a_preconditioned_step_as_diverged(tiny_model: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = attach(AutoModelForSequenceClassification.from_pretrained(tiny_model), "lora", rank=4, seed=0)
    steps = optimizer(model, lr=1e-3, preconditioned=True)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.fill_(1e30)
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    with pytest.raises(DivergedError, match=r"too large to be preconditioned .* lower the learning rate"):
        steps.step()


KNOBS = "; use a smaller batch_size, max_length or rank, or another method"
LIMITED = """
import ctypes, gc, json, resource, sys, torch
torch.set_num_threads(1)
torch.backends.mkldnn.set_flags(False)  # what oneDNN could not prepare once it refuses for good
from tunewise.study.compare import compare
from tunewise.measures.cost.peak_memory import give_back_freed_blocks
from tunewise.spec import StudySpec
from tunewise.training.events import Listener, Phase, RunFinished, RunStarted

BLOCK = 2**15
give_back_freed_blocks(BLOCK)
FREE = resource.getrlimit(resource.RLIMIT_AS)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

class Tight(Listener):
    '''From a moment of a run on until it ends there is no block of 32 kB to be had.'''

    def __init__(self, moments):
        self.moments, self.moment, self.balloon, self.began_at = moments, None, [], {}

    def tighten(self, here):
        if self.moment != here:
            return
        self.moment = None
        taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken, FREE[1]))
        while block := libc.malloc(BLOCK):  # what the allocator still has in hand
            self.balloon.append(block)

    def check(self):
        self.tighten("evaluation")
        super().check()

    def on(self, event):
        if isinstance(event, RunStarted):
            self.began_at[event.label] = event.first_step
            self.moment = self.moments.get(event.label)
            self.tighten("step")
        if isinstance(event, Phase) and event.name == "saving and checking":
            self.tighten("predictions")
        if isinstance(event, RunFinished):
            self.moment = None
            resource.setrlimit(resource.RLIMIT_AS, FREE)
            while self.balloon:
                libc.free(self.balloon.pop())

def saves(event, arguments):
    if event == "tempfile.mkdtemp":  # a folder is about to be saved
        listener.tighten(str(arguments[0]).rpartition("/")[2].split(".")[1])
    elif event == "open" and str(arguments[0]).endswith("optimizer.pt"):
        listener.tighten("checkpoint")

listener = Tight({})
sys.addaudithook(saves)
gc.freeze()  # the objects of the libraries are not looked at after each run
for moments in json.loads(sys.argv[3]):
    listener = Tight(moments)
    found = compare(StudySpec.model_validate_json(sys.argv[1]), sys.argv[2], costs=False, listener=listener)
    print(json.dumps({r.spec.method.label: [r.id, r.status, r.error] for r in found.records}))
print(json.dumps(listener.began_at))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a limit of address space is Linux's")
def test_out_of_memory_marks_that_run_and_the_others_go_on(toy_csv: Path, tmp_path: Path) -> None:
    """At a first step, in an evaluation and in two saves the address space is limited to what is taken, and what the
    allocator has in hand is taken too, so that an allocation really fails. Once there is room again the same
    comparison does what is missing: what was trained is not trained again."""
    spec = {
        "model": str(save_tiny_model(tmp_path / "model", hidden=256, layers=1)),
        "data": str(toy_csv),
        "methods": "head,cla,lora,asym,r-cla",
        "seeds": [0],
        "training": {"epochs": 1, "batch_size": 72, "max_length": 32},
        "measures": "none",
    }
    root = tmp_path / "runs"
    moments = {"cla": "step", "lora": "evaluation", "asym": "selected", "r-cla": "predictions"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, json.dumps(spec), str(root), json.dumps([moments, {}])],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    tight, roomy, began_at = map(json.loads, done.stdout.splitlines()[-3:])
    assert {name: status for name, (_, status, _) in tight.items()} == {
        "head": "done",
        **dict.fromkeys(moments, "oom"),
    }
    assert {name: tight[name][2].removeprefix("out of memory") for name in moments} == {
        "cla": KNOBS,
        "lora": f" in an evaluation of 288 examples at a time{KNOBS}",
        "asym": f" while the weights of an epoch were saved{KNOBS}",
        "r-cla": f" while predictions and adapter were saved and checked{KNOBS}",
    }
    assert all(status == "done" for _, status, _ in roomy.values())
    assert began_at == {"cla": 0, "lora": 0, "asym": 0, "r-cla": 2}
    assert all(faults_of_run(RunStore(root), run_id) == [] for run_id, _, _ in roomy.values())
    assert not list(root.glob("*/checkpoints"))


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_within_ten_seconds_and_code_130(
    tiny_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    asked = [f"--model={tiny_model}", f"--data={toy_csv}", "--methods=cla", "--seeds=1", "--epochs=200"]
    asked += [f"--out={tmp_path / 'runs'}"]
    child = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "compare", "--no-tune", *asked],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not list((tmp_path / "runs").glob("*/history.jsonl")):
        time.sleep(0.01)
    time.sleep(1)
    asked_at = time.monotonic()
    os.kill(child.pid, signal.SIGINT)
    output, _ = child.communicate(timeout=120)
    assert time.monotonic() - asked_at < 10
    assert child.returncode == 130, output[-2000:]
    assert "Traceback" not in output
    (folder,) = (one.parent for one in (tmp_path / "runs").glob("*/history.jsonl"))
    assert checkpoints.latest(folder / "checkpoints") is not None


def test_no_changed_bit_of_a_cache_of_tensors_is_believed(tmp_path: Path) -> None:
    """Every byte of a small file, one bit each: what is read is what was written, or nothing."""
    file = tmp_path / "kept.safetensors"
    whole = {"features": torch.arange(6.0).reshape(2, 3), "losses, masked": torch.tensor([0.5, 0.25])}
    save_tensors(file, whole)
    raw = file.read_bytes()
    refused = 0
    for place in range(len(raw)):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << (place % 8)
        file.write_bytes(damaged)
        found = read_tensors(file)
        refused += found is None
        assert found is None or (found.keys() == whole.keys() and all(found[k].equal(whole[k]) for k in whole))
    assert refused > 0.8 * len(raw)
    for length in range(0, len(raw), 7):
        file.write_bytes(raw[:length])
        assert read_tensors(file) is None


def _keep(file: Path, value: float) -> None:
    for _ in range(100):
        save_tensors(file, {"x": torch.full((50_000,), value)})


def test_two_processes_that_keep_one_file_do_not_meet(tmp_path: Path) -> None:
    """Both write under names of their own; what stands in the end is one of them, whole, and nothing is left over."""
    file = tmp_path / "kept.safetensors"
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_keep, args=(file, value)) for value in (1.0, 2.0)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found = read_tensors(file)  # None where the file was replaced between its header and its values
        assert found is None or found["x"].unique().numel() == 1
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [one.name for one in tmp_path.iterdir()] == ["kept.safetensors"]
    assert read_tensors(file) is not None
