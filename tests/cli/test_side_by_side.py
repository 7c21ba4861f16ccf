"""Progress of runs that go on side by side: a bar each while it goes on, and one count of all; without a terminal,
plain lines that say which run they are of."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from tunewise.cli.progress import LiveProgress
from tunewise.cli.sweep_progress import SweepProgress
from tunewise.training.events import EpochDone, Phase, RunFinished, RunStarted, StepDone


def drawn(live: LiveProgress, console: Console) -> str:
    with console.capture() as capture:
        console.print(live.curves)
        console.print(live.progress)
    return capture.get()


def listening(*, runs: int) -> tuple[LiveProgress, Console]:
    plan: Any = SimpleNamespace(
        runs=list(range(runs)), done=set(), steps=10, spec=SimpleNamespace(training=SimpleNamespace(epochs=1))
    )
    console = Console(file=io.StringIO(), width=120)
    return LiveProgress(console, plan), console


def test_two_runs_at_a_time() -> None:
    live, console = listening(runs=3)
    live.on(RunStarted("a", "lora", 0, 10, 0))
    live.on(RunStarted("b", "cla", 1, 10, 4))
    for step in range(1, 7):
        live.on(StepDone("a", step, 10, 0.1, 2.0))
    live.on(StepDone("b", 5, 10, 0.5, 1.0))
    live.on(Phase("measuring", run_id="b"))
    shown = drawn(live, console)
    assert "lora, seed 0" in shown
    assert "6/10" in shown
    assert "cla, seed 1" in shown
    assert "measuring" in shown
    assert live.steps_left() == (10 - 6) + (10 - 5) + 10
    assert live.steps_done == 7
    live.on(EpochDone("a", 1, 0.5, "accuracy", 0.75))
    live.on(RunFinished("a", "lora", 0, "done", 3.0))
    assert live.curves.scores["lora"][0] == (0.5, "accuracy", 0.75)  # not the other's, though it spoke in between
    assert live.curves.losses["cla"].keys() != live.curves.losses["lora"].keys()
    shown = drawn(live, console)
    assert "lora, seed 0" not in shown
    assert "1/3" in shown
    assert lines(console) == [
        "[1/3] lora, seed 0",
        "[2/3] cla, seed 1 from step 4",
        "    measuring",
        "    lora, seed 0, epoch 1: validation loss 0.5000, accuracy 0.7500",
        "[1/3] lora, seed 0: done in 3 s   about 0 s left",
    ]


def lines(console: Console) -> list[str]:
    return [line for line in console.file.getvalue().splitlines() if line]  # type: ignore[attr-defined]


def test_runs_without_room_among_others_count_once() -> None:
    """All of a pack end as `oom`, and are then done alone; one has no room even to begin."""
    live, console = listening(runs=3)
    for run, seed in (("a", 0), ("b", 1)):
        live.on(RunStarted(run, "lora", seed, 10, 4))
    for run, seed in (("a", 0), ("b", 1)):
        live.on(RunFinished(run, "lora", seed, "oom", 1.0))
    for run, seed in (("a", 0), ("b", 1)):
        live.on(RunStarted(run, "lora", seed, 10, 4))
        assert live.steps_left() == 6 + 10
        live.on(EpochDone(run, 1, 0.5, "accuracy", 0.75))
        live.on(RunFinished(run, "lora", seed, "done", 1.0))
    live.on(RunFinished("c", "lora", 2, "oom", 1.0))
    assert lines(console) == [
        "[1/3] lora, seed 0 from step 4",
        "[2/3] lora, seed 1 from step 4",
        "[1/3] lora, seed 0: oom in 1 s",
        "[2/3] lora, seed 1: oom in 1 s",
        "[2/3] lora, seed 0 from step 4",
        "    epoch 1: validation loss 0.5000, accuracy 0.7500",
        "[2/3] lora, seed 0: done in 1 s",
        "[2/3] lora, seed 1 from step 4",
        "    epoch 1: validation loss 0.5000, accuracy 0.7500",
        "[2/3] lora, seed 1: done in 1 s",
        "[3/3] lora, seed 2: oom in 1 s",
    ]


def test_a_pruned_run_takes_its_own_steps_away_alone() -> None:
    live, _ = listening(runs=3)
    for run in "ab":
        live.on(RunStarted(run, "lora", 0, 10, 0))
        for step in range(1, 6):
            live.on(StepDone(run, step, 10, 0.5, 1.0))
    live.on(RunFinished("a", "lora", 0, "pruned", 1.0))
    assert live.steps_left() == 5 + 10


def test_long_names_leave_room_for_the_counts() -> None:
    console = Console(file=io.StringIO(), width=80)
    live = SweepProgress(console, 40)
    live.on(RunStarted("a", "lora rank=16 alpha=32 learning_rate=0.000316 batch_size=16 train_size=1000", 0, 1200, 0))
    live.on(StepDone("a", 37, 1200, 0.1, 1.234))
    live.progress.update(live.all, note="left: about 3.2 h on 4 at once")
    with console.capture() as capture:
        console.print(live.progress)
    assert "37/1200 loss 1.234" in capture.get() and "left: about 3.2 h" in capture.get()


def test_a_sweep_draws_every_run_that_is_under_way() -> None:
    console = Console(file=io.StringIO(), width=120)
    live = SweepProgress(console, 4)
    live.on(RunStarted("a", "lora", 0, 10, 0))
    live.on(RunStarted("b", "cla", 1, 10, 4))
    live.on(StepDone("b", 7, 10, 0.5, 1.25))
    live.on(Phase("measuring", run_id="a"))
    with console.capture() as capture:
        console.print(live.progress)
    lora, cla = (next(line for line in capture.get().splitlines() if name in line) for name in ("lora", "cla"))
    assert "measuring" in lora and "0/10" in lora
    assert "7/10" in cla and "loss 1.250" in cla
    monitor: Any = SimpleNamespace(running={"b": None}, outcomes={"a": None}, total=1, at_once=2)
    live.swept(monitor, "done a")
    with console.capture() as capture:
        console.print(live.progress)
    assert "lora" not in capture.get() and "cla" in capture.get() and "1/4" in capture.get()
