"""The progress of a study: a bar for each run in progress and a count of all; lines where there is no terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from stored_runs import record_of
from tunewise.cli import progress
from tunewise.cli.progress import StudyProgress
from tunewise.spec import StudySpec
from tunewise.study.estimates import Pace
from tunewise.study.monitor import Monitor
from tunewise.study.plan import PlannedRun
from tunewise.training.events import EpochDone, Phase, RunStarted, StepDone


class Study:
    """Runs of ten steps that differ in their seed, and a view of them."""

    def __init__(self, runs: int, width: int = 120, title: str | None = None) -> None:
        method = {"name": "lora", "title": title}
        spec = StudySpec.model_validate({"model": "m", "data": "d", "methods": [method], "seeds": runs})
        nothing: Any = None
        self.runs = [PlannedRun(run, 10, nothing, nothing, nothing) for run in spec.runs()]
        self.view = StudyProgress(Console(file=io.StringIO(), width=width))
        self.monitor = Monitor(self.view, Pace("cpu"))
        self.monitor.expect(self.runs, later=[])

    def start(self, number: int, first: int = 0, steps: int = 10) -> PlannedRun:
        run = self.runs[number]
        self.monitor.begin(run)
        self.monitor.on(RunStarted(run.id, "lora", number, steps, first))
        return run

    def step(self, run: PlannedRun, *steps: int, loss: float = 2.0, total: int = 10) -> None:
        for step in steps:
            self.monitor.on(StepDone(run.id, step, total, 0.1, loss))

    @property
    def lines(self) -> list[str]:
        return self.view.console.file.getvalue().splitlines()  # type: ignore[attr-defined]

    @property
    def drawn(self) -> str:
        with self.view.console.capture() as capture:
            self.view.console.print(self.view.progress)
        return capture.get()


def test_every_run_in_progress_has_a_bar() -> None:
    study = Study(runs=3)
    one, two = study.start(0), study.start(1, first=4)
    study.step(one, *range(1, 7))
    study.step(two, 5, loss=1.0)
    study.monitor.on(Phase("measuring", run_id=two.id))
    first, second = (next(line for line in study.drawn.splitlines() if f"seed {i}" in line) for i in (0, 1))
    assert "lora, seed 0" in first and "6/10" in first and "loss 2.000" in first
    assert "lora, seed 1" in second and "5/10" in second and "measuring" in second
    study.monitor.end(one, record_of(one.spec))
    assert "seed 0" not in study.drawn and "1/3" in study.drawn


def test_without_a_terminal_there_are_lines_that_name_the_run() -> None:
    study = Study(runs=3)
    one, two = study.start(0), study.start(1, first=4)
    study.step(one, *range(1, 7))
    study.monitor.on(EpochDone(one.id, 1, 0.5, "accuracy", 0.75))
    study.monitor.end(one, record_of(one.spec))
    *lines, last = study.lines
    assert lines == [
        "[1/3] lora, seed 0",
        "[2/3] lora, seed 1 from step 4",
        "    lora, seed 0, epoch 1: validation loss 0.5000, accuracy 0.7500",
    ]
    assert last.startswith(f"[1/3] done {one.id} lora, seed 0: in 0 s, accuracy") and last.endswith("left: about 0 s")
    study.monitor.end(two, record_of(two.spec, status="oom"))
    assert study.lines[-1].startswith(f"[2/3] oom {two.id} lora, seed 1: in 0 s")


def test_without_a_terminal_steps_have_a_line_every_thirty_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    study = Study(runs=1)
    run = study.start(0)
    for step in range(1, 10):
        now[0] += 10.0
        study.step(run, step)
    assert study.lines == [
        "[1/1] lora, seed 0",
        "    lora, seed 0: step 4/10, loss 2.000",
        "    lora, seed 0: step 8/10, loss 2.000, left: about 20 s",
    ]


def test_without_a_terminal_work_without_steps_has_lines_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    study = Study(runs=1)
    run = study.start(0)
    study.monitor.on(Phase("measuring", "row 3 of 51", run_id=run.id))
    for _ in range(5):
        now[0] += 15.0
        study.view.report_phase()
    assert study.lines[1:] == 2 * ["    measuring, row 3 of 51"]
    study.step(run, 1)
    now[0] += 60.0
    study.view.report_phase()
    assert len(study.lines) == 3  # steps have lines of their own


def test_a_run_that_is_started_again_has_one_bar() -> None:
    study = Study(runs=2)
    run = study.start(0)
    study.monitor.put_back(run)
    study.step(run, 3)  # a late event of the first attempt
    study.start(0, first=4)
    study.monitor.on(RunStarted(run.id, "lora", 0, 10, 4))
    assert study.drawn.count("lora, seed 0") == 1


def test_long_names_leave_room_for_the_counts() -> None:
    name = "lora rank=16 alpha=32 learning_rate=0.000316 batch_size=16 train_size=1000"
    study = Study(runs=40, width=80, title=name)
    study.step(study.start(0, steps=1200), 37, loss=1.234, total=1200)
    study.view.progress.update(study.view.all, note="left: about 3.2 h on 4 at once")
    assert "37/1200 epoch 0.1  loss 1.234" in study.drawn and "left: about 3.2 h" in study.drawn
