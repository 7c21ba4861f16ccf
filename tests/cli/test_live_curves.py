"""Live curves: what is drawn is what was heard."""

from __future__ import annotations

import io
from itertools import pairwise

from rich.console import Console

from tunewise.cli.live_curves import WIDTH, LiveCurves, sparkline
from tunewise.training.events import EpochDone, RunStarted, StepDone


def drawn(curves):
    console = Console(file=io.StringIO(), width=110, force_terminal=False)
    console.print(curves)
    return console.file.getvalue()


def heard():
    curves = LiveCurves()
    for label, seed, top in (("lora", 0, 2.0), ("cla", 0, 1.0), ("lora", 1, 2.0)):
        run = f"{label} {seed}"
        curves.on(RunStarted(run, label, seed, 64, 0))
        for step in range(1, 65):
            curves.on(StepDone(run, step, 64, step / 64, top * (1 - step / 64)))
        curves.on(EpochDone(run, 1, 0.5 + seed, "accuracy", 0.8 - 0.2 * seed))
    return curves


def test_one_scale_for_all_and_a_falling_line():
    lines = drawn(heard()).splitlines()
    lora, cla = (next(line for line in lines if line.startswith(name)) for name in ("lora", "cla"))
    assert "█" in lora and "█" not in cla
    assert lora.rstrip().endswith("2") and "1.000" in lora and "0.700" in lora  # means over two seeds


def test_places_average_steps_and_seeds():
    curve = heard().curve("lora")
    assert len(curve) == WIDTH
    assert curve[0] == 2.0 * (1 - 1.5 / 64)
    assert all(a > b for a, b in pairwise(curve))


def test_what_is_to_come_is_blank_and_holes_are_bridged():
    assert sparkline([8.0, None, 0.0, None, None], 0.0, 8.0) == "██▁"
    assert sparkline([None, None], 0.0, 1.0) == ""
    assert sparkline([1.0, 1.0], 1.0, 1.0) == "▁▁"


def test_nothing_heard_draws_nothing():
    assert drawn(LiveCurves()).strip() == ""
