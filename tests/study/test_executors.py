"""What every executor promises: order, failures, killed workers, a stop, locks, events and remaining time."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunewise.run import run
from tunewise.spec import ExecutionOptions, StudySpec, parse
from tunewise.store import locks
from tunewise.store.folders import RunStore
from tunewise.store.records import RunRecord
from tunewise.study import loop
from tunewise.study.executors import make_executor
from tunewise.study.loop import run_study
from tunewise.study.monitor import Monitor, StudyListener
from tunewise.study.plan import Plan, make_plan
from tunewise.study.policies.grid import GridPolicy
from tunewise.training.events import Event, Interrupted, RunFinished, RunStarted, StepDone

OPTIONS: dict[str, dict[str, Any]] = {
    "serial": {"executor": "serial"},
    "processes": {"jobs": 2},
    "ray": {"executor": "ray", "ray": {"cpus_per_run": 1.0, "gpus_per_run": 0.0}},
}
RAY = pytest.param("ray", marks=pytest.mark.slow)
every_executor = pytest.mark.parametrize("name", ["serial", "processes", RAY])
WEIGHTS = "adapter/adapter_model.safetensors"


class Recorder(StudyListener):
    """Remembers events, and acts on each."""

    def __init__(self, act: Callable[[Recorder, Event], None] = lambda recorder, event: None) -> None:
        self.events: list[Event] = []
        self.act = act
        self.monitor: Monitor | None = None

    def on(self, event: Event) -> None:
        self.events.append(event)
        self.act(self, event)

    def progressed(self, monitor: Monitor, message: str) -> None:
        self.monitor = monitor

    def of(self, run_id: str) -> list[Event]:
        return [event for event in self.events if getattr(event, "run_id", "") == run_id]


def plan_of(model: Path, data: Path, store: RunStore, epochs: int = 1, methods: str = "lora,cla,asym") -> Plan:
    training = {"epochs": epochs, "batch_size": 8, "max_length": 16, "save_every": 10}
    content = {"model": str(model), "data": str(data), "methods": methods, "rank": 4, "seeds": 1, "training": training}
    return make_plan(parse(StudySpec, content), store)


def do(
    name: str, plan: Plan, store: RunStore, listener: StudyListener | None = None, *, workers: int = 2
) -> list[RunRecord]:
    if name == "ray":
        pytest.importorskip("ray", reason="ray is not installed")
    monitor = Monitor.of(plan, store, listener or Recorder())
    options = OPTIONS[name] if name != "processes" else {"jobs": workers}
    with make_executor(parse(ExecutionOptions, options), store, monitor) as executor:
        return run_study(GridPolicy(plan), executor, store, monitor)


def statuses(records: list[RunRecord]) -> dict[str, str]:
    return {record.id: record.status for record in records}


def steps_of(store: RunStore, run_id: str) -> list[int]:
    lines = (store.folder(run_id) / "history.jsonl").read_text().splitlines()
    return [entry["step"] for entry in map(json.loads, lines) if entry["kind"] == "step"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """Runs that no executor has done."""
    return RunStore(tmp_path_factory.mktemp("alone"))


@every_executor
def test_results_are_those_of_a_single_run_and_events_tell_of_each(
    name: str, tiny_model: Path, toy_csv: Path, tmp_path: Path, alone: RunStore
) -> None:
    store, recorder = RunStore(tmp_path), Recorder()
    plan = plan_of(tiny_model, toy_csv, store)
    records = do(name, plan, store, recorder)
    assert statuses(records) == {planned.id: "done" for planned in plan.runs}
    started = [event.run_id for event in recorder.events if isinstance(event, RunStarted)]
    if name == "serial":
        assert started == [planned.id for planned in plan.runs]
    for planned in plan.runs:
        one, two = run(planned.spec, alone), store.record(planned.id)
        assert two is not None and two.results == one.results
        assert name == "ray" or two.files[WEIGHTS] == one.files[WEIGHTS]
        events = recorder.of(planned.id)
        assert isinstance(events[0], RunStarted) and isinstance(events[-1], RunFinished)
        assert sum(isinstance(event, StepDone) for event in events) == planned.steps
    monitor = recorder.monitor
    assert monitor is not None and not monitor.left and not monitor.running and monitor.total == 3
    assert all(monitor.pace.seconds(planned) for planned in plan.runs)
    assert do(name, make_plan(plan.spec, store), store) == []  # nothing is done twice


@every_executor
def test_a_run_that_fails_is_recorded_with_its_traceback_and_tried_again(
    name: str, tiny_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    store = RunStore(tmp_path)
    plan = plan_of(tiny_model, toy_csv, store, methods="lora,cla")
    fails, works = plan.runs[0].id, plan.runs[1].id
    (store.folder(fails) / "history.jsonl").mkdir(parents=True)  # nothing can be written there
    assert statuses(do(name, plan, store, workers=1)) == {fails: "failed", works: "done"}
    record = store.record(fails)
    assert record is not None and record.status == "failed" and "directory" in (record.error or "")
    story = (store.folder(fails) / "error.txt").read_text()
    assert "Traceback" in story and "IsADirectoryError" in story
    (store.folder(fails) / "history.jsonl").rmdir()
    assert statuses(do("serial", make_plan(plan.spec, store), store)) == {fails: "done"}


@pytest.mark.parametrize("name", ["serial", pytest.param("processes", marks=pytest.mark.slow), RAY])
def test_a_stop_leaves_checkpoints_and_the_same_call_goes_on(
    name: str, tiny_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    def stop(recorder: Recorder, event: Event) -> None:
        recorder.stop_requested |= isinstance(event, StepDone) and event.step >= 25

    store = RunStore(tmp_path)
    plan = plan_of(tiny_model, toy_csv, store, epochs=3 if name == "serial" else 30, methods="lora,cla")
    with pytest.raises(Interrupted):
        do(name, plan, store, Recorder(stop))
    assert not any(store.is_locked(planned.id) for planned in plan.runs)
    assert store.record(plan.runs[0].id) is None
    assert any(tmp_path.glob("*/checkpoints/checkpoint-*/checksums.json"))
    recorder = Recorder()
    records = do(name, plan, store, recorder)
    assert [record.error for record in records] == [None, None]
    assert any(event.first_step for event in recorder.events if isinstance(event, RunStarted))
    for planned in plan.runs:
        assert steps_of(store, planned.id) == list(range(1, planned.steps + 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["processes", "ray"])
def test_the_run_of_a_killed_worker_goes_on_elsewhere_three_times_at_most(
    name: str, tiny_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    """One run is killed once; the other each time that it has come further."""
    store = RunStore(tmp_path)
    plan = plan_of(tiny_model, toy_csv, store, epochs=60, methods="lora,cla")
    once, always = plan.runs[0].id, plan.runs[1].id
    killed: list[str] = []
    since: dict[str, int] = {}

    def kill(recorder: Recorder, event: Event) -> None:
        if isinstance(event, RunStarted):
            since[event.run_id] = event.first_step
        if not isinstance(event, StepDone) or event.step < since.get(event.run_id, 10**6) + 13:
            return
        if event.run_id == always or once not in killed:
            holder = locks.holder(store.lock_file(event.run_id)).split()
            if store.is_locked(event.run_id) and holder[0] == "process":
                killed.append(event.run_id)
                since[event.run_id] = 10**6
                os.kill(int(holder[1]), signal.SIGKILL)

    recorder = Recorder(kill)
    assert statuses(do(name, plan, store, recorder)) == {once: "done", always: "failed"}
    assert killed.count(once) == 1 and killed.count(always) == 1 + loop.RETRIES
    assert steps_of(store, once) == list(range(1, plan.runs[0].steps + 1))
    assert max(event.first_step for event in recorder.of(once) if isinstance(event, RunStarted)) >= 10


def _hold(store: RunStore, run_id: str, ready: Any, release: Any) -> None:
    with store.lock(run_id):
        ready.set()
        release.wait(120)


@every_executor
def test_a_run_of_another_process_is_left_to_it_and_taken_over_when_that_stops(
    name: str, tiny_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    store = RunStore(tmp_path)
    plan = plan_of(tiny_model, toy_csv, store, methods="lora,cla")
    fork = multiprocessing.get_context("fork")
    ready, release = fork.Event(), fork.Event()
    other = fork.Process(target=_hold, args=(store, plan.runs[0].id, ready, release))
    other.start()
    assert ready.wait(20)

    def let_go(recorder: Recorder, event: Event) -> None:
        if isinstance(event, RunFinished):
            release.set()

    records = do(name, plan, store, Recorder(let_go), workers=1)
    other.join()
    assert [(record.id, record.status) for record in records] == [
        (plan.runs[1].id, "done"),
        (plan.runs[0].id, "done"),
    ]


@pytest.mark.slow
def test_ctrl_c_ends_the_command_with_130_and_no_process_stays(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    import subprocess
    import sys
    import time

    flags = f"--model={tiny_model} --data={toy_csv} --methods=lora,cla --rank=2 --seeds=1 --epochs=500 --batch-size=8"
    words = [
        sys.executable,
        "-c",
        "from tunewise.cli.main import run; run()",
        "compare",
        "--no-tune",
        *flags.split(),
        "--jobs=2",
    ]
    child = subprocess.Popen([*words, f"--out={tmp_path}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/history.jsonl")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    store = RunStore(tmp_path)
    holders = [int(locks.holder(store.lock_file(i)).split()[1]) for i in store.ids() if store.is_locked(i)]
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=90)
    assert child.returncode == 130, errors
    assert "run the same command again" in errors and holders
    for holder in holders:
        with pytest.raises(ProcessLookupError):
            os.kill(holder, 0)


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_not_run_again_by_its_workers(
    tiny_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    import subprocess
    import sys

    script = tmp_path / "script.py"
    script.write_text(
        f"""
import tunewise
print("once")
training = dict(epochs=1, batch_size=16, max_length=16)
spec = tunewise.StudySpec(model={str(tiny_model)!r}, data={str(toy_csv)!r}, methods="lora,cla", seeds=1, training=training)
sweep = tunewise.sweep(spec, {str(tmp_path / "runs")!r}, jobs=2)
print(sorted(row.status for row in sweep.rows))
"""
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == ["once", "['done', 'done']"], done.stderr
