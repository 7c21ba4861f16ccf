"""What all parts of a run share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tunewise.spec import RunSpec
from tunewise.store.names import HISTORY
from tunewise.tasks.contract import Task
from tunewise.training.build import total_steps
from tunewise.training.events import Listener
from tunewise.training.journal import Journal
from tunewise.training.process_group import SINGLE_PROCESS, ProcessGroup
from tunewise.training.selection import Selection


@dataclass(frozen=True)
class RunContext:
    """A run, its data, its folder, and who trains and watches it."""

    spec: RunSpec
    task: Task
    folder: Path
    listener: Listener
    process_group: ProcessGroup = SINGLE_PROCESS
    track: Sequence[str] = ()
    is_trial: bool = False

    @property
    def total_steps(self) -> int:
        return total_steps(self.spec, len(self.task.train))

    @property
    def share_of_batch(self) -> int:
        """Examples of a batch for one process."""
        return math.ceil(self.spec.training.batch_size / self.process_group.world_size)

    @cached_property
    def journal(self) -> Journal:
        return Journal(self.folder / HISTORY, writes=self.process_group.is_rank_zero)

    @cached_property
    def selection(self) -> Selection:
        return Selection(self.folder / "selected", by=self.spec.training.select, process_group=self.process_group)
