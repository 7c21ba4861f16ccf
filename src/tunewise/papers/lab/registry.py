"""The experiments by name. Nothing here imports torch, so that listing them is fast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tunewise.errors import SpecError, suggest_nearest
from tunewise.theory.bound import Mark

if TYPE_CHECKING:
    from tunewise.papers.lab.contract import LabSettings, Measurement


@dataclass(frozen=True)
class Statement:
    """A theorem, and what its experiment is expected to show."""

    name: str
    theorem: str
    source: str
    mark: Mark
    expectation: str


STATEMENTS = {
    name: Statement(name, **texts)
    for name, texts in yaml.safe_load((Path(__file__).parent / "experiments.yaml").read_text("utf-8")).items()
}


def get_statement(name: str) -> Statement:
    """Raises `SpecError` for an unknown name, with the nearest name."""
    if name not in STATEMENTS:
        raise SpecError(f"unknown experiment {name!r}{suggest_nearest(name, STATEMENTS)}")
    return STATEMENTS[name]


def load(name: str) -> Callable[[LabSettings], Measurement]:
    """The experiment's `run`. Raises `SpecError` for an unknown name."""
    module = import_module(f"tunewise.papers.lab.{get_statement(name).name.replace('-', '_')}")
    run: Callable[[LabSettings], Measurement] = module.run
    return run
