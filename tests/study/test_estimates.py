"""Remaining time: from finished runs of the same shape, and said to be unknown where there are none."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stored_runs import record_of
from tunewise.spec import ExecutionOptions, StudySpec
from tunewise.store.folders import RunStore
from tunewise.store.table import row_of
from tunewise.study.estimates import Pace
from tunewise.study.monitor import Monitor
from tunewise.study.plan import Plan, PlannedRun, make_plan
from tunewise.training.events import Listener, RunStarted, StepDone


@pytest.fixture
def plan(spec: StudySpec, tmp_path: Path) -> Plan:
    return make_plan(spec, RunStore(tmp_path))


def monitor_of(runs: list[PlannedRun]) -> Monitor:
    monitor = Monitor(Listener(), Pace("cpu: toy"))
    monitor.expect(runs, later=[])
    return monitor


def timed(monitor: Monitor, run: PlannedRun, seconds: float) -> None:
    """The run has been done by this process in so many seconds."""
    monitor.begin(run)
    monitor.on(RunStarted(run.id, "lora", 0, run.steps, 0))
    monitor.running[run.id].clock -= seconds
    monitor.end(run, record_of(run.spec))


def test_nothing_is_made_up(plan: Plan) -> None:
    left = Pace("cpu: toy").remaining(plan.todo)
    assert (left.timed, left.untimed) == (0, 16)
    assert left.words() == "not known: no finished run of these shapes to go by"


def test_stored_runs_of_the_same_shape_count(plan: Plan) -> None:
    """A LoRA run of 20 steps took 10 s here; of other machines, methods and batch sizes nothing follows."""
    lora = next(run for run in plan.runs if run.spec.method.name == "lora")
    row = row_of(record_of(lora.spec, seconds=10.0))
    pace = Pace("cpu: toy")
    larger = lora.spec.model_copy(update={"training": lora.spec.training.model_copy(update={"batch_size": 16})})
    others = [replace(row, device="cuda: another"), row_of(record_of(larger, seconds=99.0)), replace(row, status="oom")]
    pace.learn_from(others, plan.runs)
    assert pace.remaining(plan.todo).timed == 0
    pace.learn_from([row], plan.runs)
    left = pace.remaining(plan.todo)
    assert (left.seconds, left.timed, left.untimed) == (pytest.approx(80.0), 8, 8)  # whatever rank, rate and seed
    assert left.words() == "about 80 s for 8 runs, and 8 of shapes not timed yet"
    assert left.words(at_once=4).startswith("about 20 s")
    longer = replace(lora, spec=lora.spec, steps=200)
    assert pace.seconds(longer) == pytest.approx(100.0)


def test_the_running_run_counts_with_the_rest_of_its_steps(plan: Plan, tmp_path: Path) -> None:
    monitor = monitor_of(plan.runs)
    one, two = plan.runs[0], plan.runs[1]
    timed(monitor, one, 10.0)
    assert one.spec.method.name == two.spec.method.name
    monitor.begin(two)
    monitor.on(RunStarted(two.id, "lora", 0, 20, 10))
    monitor.on(StepDone(two.id, 15, 20, 1.5, 0.3))
    left = monitor.remaining()
    assert left.timed == 7 and left.untimed == 8
    assert left.seconds == pytest.approx(6 * 10.0 + 10.0 * 5 / 20, rel=0.01)


def test_a_first_run_is_timed_by_its_own_steps(plan: Plan, tmp_path: Path, monkeypatch: Any) -> None:
    clock = [100.0]
    monkeypatch.setattr("tunewise.study.monitor.time.monotonic", lambda: clock[0])
    monitor = monitor_of(plan.runs)
    one = plan.runs[0]
    monitor.begin(one)
    monitor.on(RunStarted(one.id, "lora", 0, 20, 0))
    clock[0] += 5.0
    monitor.on(StepDone(one.id, 10, 20, 1.0, 0.3))
    same = sum(run.spec.method == one.spec.method or run.spec.method.rank == one.spec.method.rank for run in plan.runs)
    left = monitor.remaining()
    assert left.timed and left.timed < same and left.seconds == pytest.approx((left.timed - 1) * 10.0 + 5.0)


def test_two_log_writers_mix_no_lines(plan: Plan, tmp_path: Path) -> None:
    one, two = monitor_of(plan.runs), monitor_of(plan.runs)
    with one.log_to(tmp_path, plan, ExecutionOptions()), two.log_to(tmp_path, plan, ExecutionOptions()):
        for i in range(5):
            one.say(f"one\n{i}")
            two.say("two " * 50)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert len(lines) == 14 and lines[2].endswith("one 0") and lines[-1].endswith("end: none")


def test_thousands_of_runs_cost_nothing_at_a_step(plan: Plan, tmp_path: Path) -> None:
    """Remaining time over 4,800 runs, as after each second of a long sweep: milliseconds."""
    runs = [
        replace(run, spec=run.spec.model_copy(update={"seed": run.spec.seed + 2 * i}))
        for i in range(300)
        for run in plan.runs
    ]
    monitor = monitor_of(runs)
    timed(monitor, runs[0], 10.0)
    assert monitor.remaining().timed == 2399
    clock = time.process_time()
    for _ in range(5):
        monitor.remaining()
    assert time.process_time() - clock < 5 * 0.2
