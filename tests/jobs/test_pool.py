"""Runs in processes side by side: the same runs, none twice, and all of them stop when asked to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
from tunewise.jobs import messages
from tunewise.jobs.messages import Work
from tunewise.jobs.pool import in_processes
from tunewise.tuning.stopping import Objective, StopRule

from tunewise.errors import InsufficientResources, SpecError, StoreError
from tunewise.run import run
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, TrainingSpec
from tunewise.store.folders import RunStore
from tunewise.store.locks import RunLocked
from tunewise.training.events import Event, Interrupted, Listener, RunFinished, RunStarted, StepDone
from tunewise.training.trajectory import SnapshotOptions

WEIGHTS = "adapter/adapter_model.safetensors"


def make_specs(model: Path, data: Path, epochs: int = 1) -> list[RunSpec]:
    return [
        RunSpec(
            model=ModelSpec(path=str(model), digest="m"),
            data=DataSpec(path=str(data), digest="d"),
            method=MethodSpec(name=name, rank=4),
            training=TrainingSpec(epochs=epochs, batch_size=8, max_length=16),
        )
        for name in ("lora", "cla", "asym")
    ]


class Recorder(Listener):
    def __init__(self, stop_at: int | None = None) -> None:
        self.events: list[Event] = []
        self.stop_at = stop_at

    def on(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, StepDone) and event.step == self.stop_at:
            self.stop_requested = True


def test_two_processes_do_what_one_thread_does_here_bit_for_bit(
    tiny_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    specs = make_specs(tiny_model, toy_csv)
    pool, here = RunStore(tmp_path / "pool"), RunStore(tmp_path / "here")
    listener = Recorder()
    in_processes([Work(spec) for spec in specs], 2, pool.root, listener)
    for spec in specs:
        one, two = run(spec, here), pool.record(spec.id)
        assert two.files[WEIGHTS] == one.files[WEIGHTS]
        assert two.results == one.results
        said = [event for event in listener.events if event.run_id == spec.id]
        assert isinstance(said[0], RunStarted)
        assert isinstance(said[-1], RunFinished)
        assert len([e for e in said if isinstance(e, StepDone)]) == said[0].total_steps


@pytest.mark.slow
def test_a_stop_reaches_all_workers_and_their_runs_go_on_later(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    specs = make_specs(tiny_model, toy_csv, epochs=60)[:2]
    store = RunStore(tmp_path)
    with pytest.raises(Interrupted):
        in_processes([Work(spec) for spec in specs], 2, tmp_path, Recorder(stop_at=5))
    begun = [spec for spec in specs if (tmp_path / spec.id).is_dir()]
    assert begun
    for spec in begun:
        assert not store.is_locked(spec.id)
        assert store.record(spec.id) is None
    assert any(tmp_path.glob("*/checkpoints/checkpoint-*/checksums.json"))


@pytest.mark.slow
def test_errors_come_back_as_what_they_are(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    """A run that another process has; a worker that is killed."""
    specs = make_specs(tiny_model, toy_csv, epochs=200)
    store = RunStore(tmp_path)
    with store.lock(specs[0].id), pytest.raises(StoreError, match="being run by process"):
        in_processes([Work(specs[0])], 1, tmp_path, Listener())

    class Kills(Listener):
        def on(self, event: Event) -> None:
            if isinstance(event, StepDone) and event.step == 3:
                holder = (tmp_path / ".locks" / event.run_id).read_text()
                os.kill(int(holder.split()[1]), signal.SIGKILL)

    with pytest.raises(InsufficientResources, match="fewer --jobs"):
        in_processes([Work(specs[1])], 1, tmp_path, Kills())


@pytest.mark.slow
def test_ctrl_c_ends_the_command_with_130_and_no_process_stays(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    flags = f"--model={tiny_model} --data={toy_csv} --methods=lora,cla --rank=2 --seeds=1 --epochs=500 --batch-size=8"
    words = [sys.executable, "-c", "from tunewise.cli.main import run; run()", "compare", *flags.split(), "--jobs=2"]
    child = subprocess.Popen([*words, f"--out={tmp_path}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/history.jsonl")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    holders = [int(f.read_text().split()[1]) for f in tmp_path.glob(".locks/*")]
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=90)
    assert child.returncode == 130, errors
    assert "run the same command again" in errors
    assert holders
    for holder in holders:
        with pytest.raises(ProcessLookupError):
            os.kill(holder, 0)


def test_messages_survive_the_way(tiny_model: Path, toy_csv: Path) -> None:
    specs = make_specs(tiny_model, toy_csv)
    rule = StopRule(Objective("accuracy", -1.0), ((0.5, 0.25), (1.0, 0.0)), 4)
    work = Work(specs[0], SnapshotOptions(5, full=True), track=("wandb",), rule=rule)
    assert Work.read(work.line()) == work
    event = StepDone("r", 3, 10, 0.3, 1.25)
    assert messages.heard(messages.said(event)) == event
    assert messages.heard(messages.done()) is None
    error = messages.heard(messages.failed(SpecError("no")))
    assert isinstance(error, SpecError)
    assert str(error) == "no"
    assert isinstance(messages.heard(messages.failed(Interrupted("stopped"))), Interrupted)
    assert type(messages.heard(messages.failed(RunLocked("another")))) is RunLocked
    try:
        raise SpecError("no") from ZeroDivisionError("of nothing")
    except SpecError as raised:
        arrived = messages.heard(messages.failed(raised))
    assert isinstance(arrived, SpecError)
    story = "".join(traceback.format_exception(arrived))
    assert "ZeroDivisionError: of nothing" in story and Path(__file__).name in story
