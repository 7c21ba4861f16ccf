"""Experiment trackers of the Trainer: one tracked run for each of ours."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tunewise.errors import SpecError, suggest_nearest
from tunewise.spec import RunSpec

TRACKERS = ("tensorboard", "wandb", "trackio")
PROJECT = "tunewise"


def check_trackers(names: Sequence[str]) -> list[str]:
    """Return the names. Raises `SpecError` for an unknown tracker, or one that is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise SpecError(f"--track {name!r}: no such tracker{suggest_nearest(name, TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise SpecError(f"--track {name} needs the package {name}: pip install {name}")
    return list(names)


@contextlib.contextmanager
def tracked(names: Sequence[str], spec: RunSpec, folder: Path) -> Iterator[str]:
    """Yield the name of the run in its trackers. TensorBoard writes to `RUNS/tensorboard/NAME`; wandb and trackio use
    the project `tunewise` unless WANDB_PROJECT or TRACKIO_PROJECT is set. At the end the tracked run is closed."""
    label = re.sub(r"[^\w.=-]+", "-", spec.method.label)
    name = f"{label}-seed{spec.seed}-{spec.id[:6]}"
    variables = {"TENSORBOARD_LOGGING_DIR": str(folder.parent / "tensorboard" / name)}
    variables |= {key: PROJECT for key in ("WANDB_PROJECT", "TRACKIO_PROJECT") if key not in os.environ}
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables if names else {})
    try:
        yield name
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
        if "wandb" in names and getattr(sys.modules.get("wandb"), "run", None) is not None:
            sys.modules["wandb"].finish()
