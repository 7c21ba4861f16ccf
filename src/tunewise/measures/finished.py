"""A finished run, opened again: its data and its models, for the measures that look into it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from torch import nn

from tunewise.methods.loading import restore
from tunewise.spec import RunSpec
from tunewise.store.records import RunRecord
from tunewise.tasks.contract import Task
from tunewise.training.build import build_model

Check = Callable[[], None]
"""Called every few seconds; raises where the user has asked to stop."""


def no_check() -> None:
    """A `Check` that never stops."""


class FinishedRun:
    """Models are loaded on first use and shared: a measure leaves them bit for bit as they were."""

    def __init__(self, record: RunRecord, folder: Path, task: Task, cache: Path) -> None:
        self.record = record
        self.folder = folder
        self.task = task
        self.cache = cache
        """A folder for what belongs to the base model and not to the run (decompositions, features), by hash."""
        self.report_progress: Callable[[str], None] = lambda detail: None
        """Called with the progress of a long measure: 'row 3 of 51'."""

    @property
    def spec(self) -> RunSpec:
        return self.record.spec

    @property
    def adapter(self) -> Path:
        """The folder of the selected epoch's adapter."""
        return self.folder / "adapter"

    @cached_property
    def base(self) -> nn.Module:
        """The base model with the untrained head that the run started from, nothing attached; eval mode."""
        return self.task.load_model(self.spec.seed).eval()

    @cached_property
    def model(self) -> nn.Module:
        """The trained model, selected epoch, with its method on it; eval mode."""
        model = build_model(self.spec, self.task)
        restore(model, self.adapter)
        return model.eval()
