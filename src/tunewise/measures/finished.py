"""A finished run, opened again: its data and its models, for the measures that look into it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from tunewise.methods.loading import load, restore
from tunewise.models.quantization import is_fp32, to_fp32
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
    def base_in_fp32(self) -> nn.Module:
        """The base model with the weights that it computes with as fp32; itself where it has them so."""
        return self.base if is_fp32(self.base) else to_fp32(self.task.load_model(self.spec.seed)).eval()

    def load_in_fp32(self, *, trainable: bool = False) -> Any:
        """A new model of the selected epoch on a dequantized, widened base: what is fine in bf16 and 4 bits for logits
        is too coarse for derivatives, and a merge would be rounded."""
        return load(to_fp32(self.task.load_model(self.spec.seed)), self.adapter, trainable=trainable).eval()

    @cached_property
    def model(self) -> nn.Module:
        """The trained model, selected epoch, with its method on it; eval mode."""
        model = build_model(self.spec, self.task)
        restore(model, self.adapter)
        return model.eval()
