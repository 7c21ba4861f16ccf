"""The epoch that is kept: its weights are on disk as soon as it is the best so far."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from torch import nn

from tunewise.errors import StoreError, out_of_memory_noted
from tunewise.methods.loading import restore
from tunewise.methods.saving import save
from tunewise.store.files import write_atomically
from tunewise.training.process_group import SINGLE_PROCESS, ProcessGroup


class Selection:
    """Lowest validation loss, or best validation metric; of equal epochs the earlier one. Offering an epoch again
    after a resume has the same outcome as the first time."""

    def __init__(
        self, folder: Path, by: Literal["loss", "metric"], process_group: ProcessGroup = SINGLE_PROCESS
    ) -> None:
        self.folder = folder
        self.by = by
        self.process_group = process_group
        self.note = folder.with_suffix(".json")

    @property
    def rule(self) -> str:
        """In words, for the record."""
        return "lowest validation loss" if self.by == "loss" else "best validation metric"

    def offer(self, model: nn.Module, epoch: float, loss: float, metric: float, lower_is_better: bool = False) -> None:
        """Save the trained tensors of the model if this epoch is the best so far."""
        rank = -loss if self.by == "loss" else -metric if lower_is_better else metric
        is_best = self.process_group.on_rank_zero(lambda: self._is_best(epoch, rank))
        if is_best and self.process_group.is_rank_zero:
            with out_of_memory_noted("while the weights of an epoch were saved"):
                save(model, self.folder)
                write_atomically(self.note, json.dumps({"epoch": epoch, "rank": rank}))

    def load(self, model: nn.Module) -> float:
        """Load the weights of the selected evaluation into the model; returns the passes over the data before it."""
        best = self._best()
        if best is None:
            raise StoreError(f"the weights of the selected epoch are gone from {self.folder}; remove the run's folder")
        restore(model, self.folder)
        return best["epoch"]

    def forget(self) -> None:
        """Start from scratch."""
        self.note.unlink(missing_ok=True)

    def _is_best(self, epoch: float, rank: float) -> bool:
        best = self._best()
        return best is None or epoch <= best["epoch"] or rank > best["rank"]

    def _best(self) -> dict[str, float] | None:
        if not self.note.exists() or not self.folder.exists():
            return None
        return json.loads(self.note.read_text(encoding="utf-8"))
