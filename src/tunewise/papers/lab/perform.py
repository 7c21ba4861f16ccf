"""One experiment, run: its outcome with the time it took and the versions it came from."""

from __future__ import annotations

import time

from tunewise.papers.lab.contract import Experiment, Result, Settings
from tunewise.store.environment import device_name, environment


def perform(experiment: Experiment, settings: Settings) -> Result:
    """Runs it. `seconds` is wall-clock time, the measurement of speed-ups included."""
    start = time.perf_counter()
    outcome = experiment.run(settings)
    seconds = time.perf_counter() - start
    found = environment()
    versions = {"tunewise": found.tunewise, "python": found.python, **found.versions, "device": device_name()}
    return Result(experiment.statement, settings, outcome, seconds, versions)
