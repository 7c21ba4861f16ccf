"""The progress of a study: a bar for each run in progress and a count of all; lines where there is no terminal."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tunewise.cli import progress
from tunewise.cli.progress import StudyProgress
from tunewise.training.events import EpochDone, Phase, RunFinished, RunStarted, StepDone


def view_of(runs: int, width: int = 120) -> StudyProgress:
    return StudyProgress(Console(file=io.StringIO(), width=width), runs)


def lines_of(view: StudyProgress) -> list[str]:
    return view.console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def drawn(view: StudyProgress) -> str:
    with view.console.capture() as capture:
        view.console.print(view.progress)
    return capture.get()


def test_every_run_in_progress_has_a_bar() -> None:
    view = view_of(runs=3)
    view.on(RunStarted("a", "lora", 0, 10, 0))
    view.on(RunStarted("b", "cla", 1, 10, 4))
    for step in range(1, 7):
        view.on(StepDone("a", step, 10, 0.1, 2.0))
    view.on(StepDone("b", 5, 10, 0.5, 1.0))
    view.on(Phase("measuring", run_id="b"))
    lora, cla = (next(line for line in drawn(view).splitlines() if name in line) for name in ("lora", "cla"))
    assert "lora, seed 0" in lora and "6/10" in lora and "loss 2.000" in lora
    assert "cla, seed 1" in cla and "5/10" in cla and "measuring" in cla
    view.on(RunFinished("a", "lora", 0, "done", 3.0))
    assert "lora, seed 0" not in drawn(view) and "1/3" in drawn(view)


def test_without_a_terminal_there_are_lines_that_name_the_run() -> None:
    view = view_of(runs=3)
    view.on(RunStarted("a", "lora", 0, 10, 0))
    view.on(RunStarted("b", "cla", 1, 10, 4))
    for step in range(1, 7):
        view.on(StepDone("a", step, 10, 0.1, 2.0))
    view.on(EpochDone("a", 1, 0.5, "accuracy", 0.75))
    view.on(RunFinished("a", "lora", 0, "done", 3.0))
    assert lines_of(view) == [
        "[1/3] lora, seed 0",
        "[2/3] cla, seed 1 from step 4",
        "    lora, seed 0, epoch 1: validation loss 0.5000, accuracy 0.7500",
        "[1/3] lora, seed 0: done in 3 s   about 0 s left",
    ]


def test_without_a_terminal_steps_have_a_line_every_thirty_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    view = view_of(runs=2)
    view.on(RunStarted("a", "lora", 0, 10, 0))
    for step in range(1, 10):
        now[0] += 10.0
        view.on(StepDone("a", step, 10, 0.1, 2.0))
    assert lines_of(view) == [
        "[1/2] lora, seed 0",
        "    lora, seed 0: step 4/10, loss 2.000",
        "    lora, seed 0: step 8/10, loss 2.000, about 20 s left",
    ]


def test_a_run_that_is_tried_again_counts_once() -> None:
    view = view_of(runs=3)
    for status in ("oom", "done"):
        view.on(RunStarted("a", "lora", 0, 10, 4))
        view.on(RunFinished("a", "lora", 0, status, 1.0))
    view.on(RunFinished("c", "lora", 2, "oom", 1.0))  # did not even start
    assert lines_of(view)[-1] == "[2/3] lora, seed 2: oom in 1 s"


def test_a_study_counts_and_names_runs_by_its_monitor() -> None:
    view = view_of(runs=4)
    planned = SimpleNamespace(run=SimpleNamespace(spec="rank 4"))
    monitor: Any = SimpleNamespace(
        total=4, outcomes={}, running={"a": planned, "b": planned}, left={"a", "b"}, at_once=2, name=str
    )
    monitor.remaining = lambda: SimpleNamespace(timed=2, words=lambda at_once: f"3 h on {at_once}")
    view.progressed(monitor, "")
    for run in "ab":
        view.on(RunStarted(run, "lora", 0, 10, 0))
    assert "rank 4" in drawn(view) and "lora" not in drawn(view)
    monitor.outcomes["a"] = None
    del monitor.running["a"]
    view.on(RunFinished("a", "lora", 0, "done", 3.0))
    view.progressed(monitor, "done a: accuracy 0.9")
    assert lines_of(view)[-1] == "[1/4] done a: accuracy 0.9   left: 3 h on 2"
    assert drawn(view).count("rank 4") == 1 and "1/4" in drawn(view)


def test_long_names_leave_room_for_the_counts() -> None:
    view = view_of(runs=40, width=80)
    name = "lora rank=16 alpha=32 learning_rate=0.000316 batch_size=16 train_size=1000"
    view.on(RunStarted("a", name, 0, 1200, 0))
    view.on(StepDone("a", 37, 1200, 0.1, 1.234))
    view.progress.update(view.all, note="left: about 3.2 h on 4 at once")
    assert "37/1200 epoch 0.1  loss 1.234" in drawn(view) and "left: about 3.2 h" in drawn(view)
