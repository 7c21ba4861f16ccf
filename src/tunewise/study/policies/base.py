"""The contract of a policy: asked for runs and told each result, as in Optuna."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from tunewise.store.records import RunRecord
from tunewise.study.plan import PlannedRun


class Policy(ABC):
    """Decides which runs a study does next.

    A policy keeps no files of its own: made again from the same plan and the same store it asks for the same runs, but
    for those that are done, so a study that was stopped goes on.
    A study is over when `ask` returns nothing while no run is under way.
    """

    asks_for_trials: ClassVar[bool] = False
    """Whether its runs are judged on validation alone."""

    @abstractmethod
    def ask(self) -> list[PlannedRun]:
        """Runs that may start now, each returned once; empty while the policy waits for results, and at the end."""

    @abstractmethod
    def tell(self, record: RunRecord) -> None:
        """Take note of the end of a run: done, diverged, failed or out of memory."""

    @abstractmethod
    def upcoming(self) -> list[PlannedRun]:
        """Runs that have not ended and will be asked for, as far as that is known; for estimates of time."""
