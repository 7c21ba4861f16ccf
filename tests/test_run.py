"""One run end to end on a tiny model: what its record says is true, and nothing is lost on the way."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn

from tunewise.errors import StoreError
from tunewise.run import run
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, TrainingSpec
from tunewise.store.folders import RunStore
from tunewise.store.records import RunRecord
from tunewise.tasks.build import build_task
from tunewise.training import checkpoints, selection
from tunewise.training.events import EpochDone, Event, Interrupted, Listener, RunFinished, RunStarted, StepDone
from tunewise.training.journal import read_history


def make_spec(model: Path, data: Path, method: str = "cla", seed: int = 0, **training: object) -> RunSpec:
    options = {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3, "max_length": 16, **training}
    return RunSpec(
        model=ModelSpec(path=str(model)),
        data=DataSpec(path=str(data)),
        method=MethodSpec(name=method, rank=4),
        training=TrainingSpec(**options),
        seed=seed,
    )


class Recorder(Listener):
    def __init__(self, stop_at: int | None = None) -> None:
        self.events: list[Event] = []
        self.stop_at = stop_at

    def on(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, StepDone) and event.step == self.stop_at:
            self.stop_requested = True


@dataclass(frozen=True)
class Done:
    """A run to its end: not to be changed, copy its store."""

    spec: RunSpec
    store: RunStore
    record: RunRecord
    events: list[Event]


@pytest.fixture(scope="module")
def done(tiny_model: Path, toy_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    spec, store, listener = make_spec(tiny_model, toy_csv), RunStore(tmp_path_factory.mktemp("done")), Recorder()
    return Done(spec, store, run(spec, store, listener=listener), listener.events)


@pytest.mark.parametrize("method", ["head", "fft", "lora", "cla", "paca", "r-c3la", "cola", "lora-one"])
def test_record_matches_what_stock_loaders_compute(
    method: str, tiny_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    """Losses and gap in the record, recomputed from the saved folder by stock PEFT and plain torch."""
    spec = make_spec(tiny_model, toy_csv, method)
    store = RunStore(tmp_path)
    record = run(spec, store)
    assert record.status == "done"
    assert record.check is not None
    assert record.check.max_logit_difference <= 1e-5
    task = build_task(spec)
    base = task.load_model(spec.seed)
    adapter = store.folder(record.id) / "adapter"
    if method in ("head", "fft"):
        from safetensors.torch import load_file

        missing, unexpected = base.load_state_dict(load_file(adapter / "changed.safetensors"), strict=False)
        assert not unexpected
        assert method == "head" or not [n for n in missing if "position_ids" not in n]
        model = base
    else:
        model = PeftModel.from_pretrained(base, str(adapter))
    model.eval()
    for split, scores in ((task.train, record.results.train), (task.test, record.results.test)):
        batch = task.collate(list(split))
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = model(**batch).logits
        loss = torch.nn.functional.cross_entropy(logits.double(), labels)
        assert scores.loss == pytest.approx(float(loss), abs=1e-5)
        assert scores.metrics["accuracy"] == pytest.approx(float((logits.argmax(-1) == labels).double().mean()))
        assert scores.examples == len(split)
    assert record.results.gap == record.results.test.loss - record.results.train.loss
    kept = np.load(store.folder(record.id) / "predictions.npz")
    assert kept["logits"].shape == (len(task.test), len(task.labels))
    assert sum(map(sum, record.results.confusion)) == len(task.test)


def test_selected_epoch_has_the_lowest_validation_loss(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny_model, toy_csv, "fft", epochs=5, learning_rate=3e-2)  # so fast that it overshoots
    store = RunStore(tmp_path)
    record = run(spec, store)
    losses = {
        entry["epoch"]: entry["validation"]["loss"]
        for entry in read_history(store.folder(record.id) / "history.jsonl")
        if entry["kind"] == "epoch"
    }
    assert record.results.selected_epoch == min(losses, key=losses.__getitem__)
    assert record.results.validation.loss == pytest.approx(min(losses.values()), abs=1e-6)


def test_every_method_starts_from_the_same_head_at_one_seed(tiny_model: Path, toy_csv: Path) -> None:
    task = build_task(make_spec(tiny_model, toy_csv))
    heads = [task.load_model(seed).get_parameter("classifier.weight") for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_finished_run_is_not_run_again(done: Done) -> None:
    listener = Recorder()
    assert run(done.spec, done.store, listener=listener) == done.record
    assert listener.events == []


def test_a_run_that_another_process_has_just_finished_is_not_run_again(
    done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends there between this process's first look and its lock."""
    look, looks = done.store.finished, []
    monkeypatch.setattr(done.store, "finished", lambda run_id: look(run_id) if looks else looks.append(run_id))
    listener = Recorder()
    assert run(done.spec, done.store, listener=listener) == done.record
    assert len(looks) == 1 and listener.events == []


def test_what_a_run_is_can_be_read_before_it_ends(done: Done, tmp_path: Path) -> None:
    spec, store = done.spec, RunStore(tmp_path)
    with pytest.raises(Interrupted):
        run(spec, store, listener=Recorder(stop_at=2))
    assert store.begun(spec.id) == spec
    assert done.store.begun(spec.id) is None


def test_a_damaged_run_is_run_again(done: Done, tmp_path: Path) -> None:
    store = RunStore(shutil.copytree(done.store.root, tmp_path / "runs"))
    weights = store.folder(done.spec.id) / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    again = run(done.spec, store)
    assert again.files == done.record.files
    assert again.results == done.record.results


def test_the_same_spec_gives_the_same_result_bit_for_bit(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny_model, toy_csv, "r-cla", epochs=1)
    one, two = (run(spec, RunStore(tmp_path / name)) for name in "ab")
    assert one.files["adapter/adapter_model.safetensors"] == two.files["adapter/adapter_model.safetensors"]
    assert one.results == two.results
    other = run(make_spec(tiny_model, toy_csv, "r-cla", seed=1, epochs=1), RunStore(tmp_path / "c"))
    assert other.results != one.results


@pytest.mark.parametrize(
    ("method", "step"),
    [
        ("cla", 4),
        ("paca", 13),
        ("r-c3la", 13),
        ("fft", 4),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("cla", 13), ("paca", 4), ("r-c3la", 4), ("fft", 13)]
        ),
    ],
)
def test_stopped_and_continued_equals_uninterrupted(
    method: str, step: int, tiny_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    """Bit for bit, with dropout on, stopped inside the first epoch and inside the second."""
    spec = make_spec(tiny_model, toy_csv, method)
    whole = run(spec, RunStore(tmp_path / "whole"))
    store = RunStore(tmp_path / "parts")
    with pytest.raises(Interrupted):
        run(spec, store, listener=Recorder(stop_at=step))
    assert store.record(spec.id) is None
    listener = Recorder()
    parts = run(spec, store, listener=listener)
    started = next(e for e in listener.events if isinstance(e, RunStarted))
    assert started.first_step == step
    assert parts.results == whole.results
    name = "adapter/changed.safetensors" if method == "fft" else "adapter/adapter_model.safetensors"
    assert parts.files[name] == whole.files[name]
    histories = [read_history(RunStore(tmp_path / p).folder(spec.id) / "history.jsonl") for p in ("whole", "parts")]
    assert histories[0] == histories[1]


class Dies(BaseException):
    """Nobody catches it: what a killed process leaves, without a process to kill."""


@pytest.fixture(scope="module")
def saved_at_epochs(tiny_model: Path, toy_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A whole run with a checkpoint at the last step of each epoch."""
    examples = len(build_task(make_spec(tiny_model, toy_csv)).train)
    spec = make_spec(tiny_model, toy_csv, learning_rate=2e-2, save_every=math.ceil(examples / 8))
    return run(spec, RunStore(tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("at", ["before the weights are kept", "before their note", "after it"])
@pytest.mark.parametrize("epoch", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_death_while_an_epoch_is_selected_changes_nothing(
    epoch: int, at: str, saved_at_epochs: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of the epoch's last step is there before its evaluation, where checkpoints fall on that step."""
    whole, spec = saved_at_epochs, saved_at_epochs.spec
    offered = selection.Selection.offer

    def offer(self: selection.Selection, model: nn.Module, number: int, *rest: float) -> None:
        if number != epoch:
            offered(self, model, number, *rest)
            return
        if at == "before their note":
            monkeypatch.setattr(selection, "write_atomically", _dies)
        if at != "before the weights are kept":
            offered(self, model, number, *rest)
        raise Dies

    store = RunStore(tmp_path / "parts")
    with monkeypatch.context() as patch:
        patch.setattr(selection.Selection, "offer", offer)
        with pytest.raises(Dies):
            run(spec, store)
    monkeypatch.undo()
    parts = run(spec, store)
    assert parts.results == whole.results
    assert parts.files["adapter/adapter_model.safetensors"] == whole.files["adapter/adapter_model.safetensors"]


def _dies(*_: object) -> None:
    raise Dies


def test_the_record_has_the_largest_number_of_processes(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert checkpoints.most_processes(folder, 1) == 1
    assert checkpoints.most_processes(folder, 4) == 4
    assert checkpoints.most_processes(folder, 2) == 2  # the first start left no checkpoint
    (folder / "checkpoint-3").mkdir()
    assert checkpoints.most_processes(folder, 1) == 2


def test_nan_in_a_batch_ends_the_run_as_diverged(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny_model, toy_csv, "cla", learning_rate=1e30)
    store = RunStore(tmp_path)
    record = run(spec, store)
    assert record.status == "diverged"
    assert "learning rate" in str(record.error)
    assert record.results is None
    assert not (store.folder(record.id) / "adapter").exists()


def test_events_tell_the_whole_story(done: Done) -> None:
    events, record = done.events, done.record
    steps = [e.step for e in events if isinstance(e, StepDone)]
    started = next(e for e in events if isinstance(e, RunStarted))
    assert steps == list(range(1, started.total_steps + 1))
    assert [e.epoch for e in events if isinstance(e, EpochDone)] == [1, 2]
    assert events[-1] == RunFinished(record.id, record.spec.method.label, record.spec.seed, "done", record.seconds)


def test_a_run_that_another_process_holds_is_refused(done: Done, tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    with store.lock(done.spec.id), pytest.raises(StoreError, match="being run by process"):
        run(done.spec, store)


CHILD = """
import sys, torch
torch.set_num_threads(1)
from tunewise.run import run
from tunewise.spec import RunSpec
from tunewise.store.folders import RunStore
run(RunSpec.model_validate_json(sys.argv[1]), RunStore(sys.argv[2]))
"""


def kill_at(spec: RunSpec, folder: Path, ready: str) -> None:
    """Start the run in a process of its own and SIGKILL it as soon as a file that matches `ready` is there."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, spec.model_dump_json(), str(folder)])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and child.poll() is None:
        if list((folder / spec.id).glob(ready)):
            break
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    "ready", ["history.jsonl", "checkpoints/checkpoint-5/*.safetensors", "checkpoints/checkpoint-10/*.json", "adapter"]
)
def test_killed_anywhere_and_run_again_completes_alike(
    ready: str, tiny_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    """SIGKILL in the middle of steps, of saves and of the last write; the next process needs no cleaning up."""
    spec = make_spec(tiny_model, toy_csv, "c3la", save_every=5)
    whole = run(spec, RunStore(tmp_path / "whole"))
    store = RunStore(tmp_path / "killed")
    kill_at(spec, tmp_path / "killed", ready)
    again = run(spec, store)
    assert again.status == "done"
    assert again.results == whole.results
    assert again.files == whole.files
    assert not (store.folder(spec.id) / "checkpoints").exists()
    assert json.loads((store.folder(spec.id) / "run.json").read_text())["status"] == "done"
