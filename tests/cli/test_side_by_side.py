"""Progress of runs that go on side by side: a line each while it goes on, and one count of all."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from tunewise.cli.progress import LiveProgress
from tunewise.training.events import EpochDone, OfRun, Phase, RunFinished, RunStarted, StepDone


def drawn(live: LiveProgress, console: Console) -> str:
    with console.capture() as capture:
        console.print(live.curves)
        console.print(live.progress)
    return capture.get()


def test_two_runs_at_a_time() -> None:
    plan: Any = SimpleNamespace(
        runs=[1, 2, 3], done=set(), steps=10, spec=SimpleNamespace(training=SimpleNamespace(epochs=1))
    )
    console = Console(file=io.StringIO(), width=120)
    live = LiveProgress(console, plan)
    live.on(OfRun("a", RunStarted("a", "lora", 0, 10, 0)))
    live.on(OfRun("b", RunStarted("b", "cla", 1, 10, 4)))
    for step in range(1, 7):
        live.on(OfRun("a", StepDone(step, 10, 0.1, 2.0)))
    live.on(OfRun("b", StepDone(5, 10, 0.5, 1.0)))
    live.on(OfRun("b", Phase("measuring")))
    shown = drawn(live, console)
    assert "lora, seed 0" in shown
    assert "6/10" in shown
    assert "cla, seed 1" in shown
    assert "measuring" in shown
    assert live.steps_to_do == 30 - 4
    assert live.steps_done == 7
    live.on(OfRun("a", EpochDone(1, 0.5, "accuracy", 0.75)))
    live.on(OfRun("a", RunFinished("a", "done", 3.0)))
    assert live.curves.scores["lora"][0] == (0.5, "accuracy", 0.75)  # not the other's, though it spoke in between
    assert live.curves.losses["cla"].keys() != live.curves.losses["lora"].keys()
    shown = drawn(live, console)
    assert "lora, seed 0" not in shown
    assert "1/3" in shown
    assert "[1/3] lora, seed 0: done in 3 s" in console.file.getvalue()
