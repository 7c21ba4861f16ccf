"""When a run is stopped early: Optuna's pruners on validation losses, epoch by epoch.

Optuna's `MedianPruner` as it comes (behind the median of the trials so far) is unsound for a search of learning rates:
a low rate is behind in its first epochs only because it is low, a high one varies until the schedule has decayed, and
the median of four trials is one or two numbers. So a trial is stopped only where three things hold: half of its epochs
are over and two trials before it came to their end; its best value so far is worse than their median at the same epoch
(`MedianPruner`); its last epoch was worse than its own best (`PatientPruner` around it).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tunewise.errors import SpecError
from tunewise.training.events import EpochDone, Event, ForwardingListener, Listener, Pruned
from tunewise.training.journal import read_history

if TYPE_CHECKING:
    import optuna

LEAST_TRIALS = 2
"""Earlier trials without which none is stopped."""


@dataclass(frozen=True)
class Objective:
    """What a trial is judged by, lower is better: the validation loss, or a metric, turned round where higher is
    better."""

    metric: str | None
    sign: float = 1.0

    def of(self, loss: float, metrics: Mapping[str, float]) -> float:
        return loss if self.metric is None else self.sign * metrics[self.metric]

    def history(self, folder: Path) -> list[float]:
        """After each epoch of the run in this folder."""
        entries = [entry["validation"] for entry in read_history(folder / "history.jsonl") if entry["kind"] == "epoch"]
        return [self.of(entry["loss"], entry["metrics"]) for entry in entries]


class StopRule(Protocol):
    """When a run is ended early. It travels to the process of the run, which asks it after every epoch."""

    def reason(self, folder: Path) -> str | None:
        """Why the run in this folder is to be stopped now; None where it is not."""
        ...


@dataclass(frozen=True)
class MedianStop:
    """Stops a trial that falls behind `others`: the histories of the earlier trials that ran to their end."""

    objective: Objective
    others: tuple[tuple[float, ...], ...]
    epochs: int

    def reason(self, folder: Path) -> str | None:
        epoch = stopped_at(self.objective.history(folder), self.others, self.epochs)
        if epoch is None:
            return None
        return (
            f"stopped after epoch {epoch} of {self.epochs}: worse than the median of the trials before it, and no "
            "longer getting better"
        )


class EarlyStop(ForwardingListener):
    """Forwards events, and ends the run in `folder` by a rule."""

    def __init__(self, inner: Listener, rule: StopRule, folder: Path) -> None:
        super().__init__(inner)
        self.rule, self.folder = rule, folder

    def on(self, event: Event) -> None:
        super().on(event)
        if isinstance(event, EpochDone) and (reason := self.rule.reason(self.folder)):
            raise Pruned(reason)


def stopped_at(own: Sequence[float], others: Sequence[Sequence[float]], epochs: int) -> int | None:
    """The first epoch, from 1, after which a trial with the values `own` (lower is better) is stopped, or None.

    `others` are the values of the earlier trials that ran to their end. The last epoch stops nothing: the trial is
    over. Raises `SpecError` where optuna is not installed.
    """
    study = _study(epochs)
    import optuna

    for values in others:
        steps = {epoch: value for epoch, value in enumerate(values, start=1) if math.isfinite(value)}
        if steps:
            finished = optuna.trial.create_trial(value=min(steps.values()), intermediate_values=steps)
            study.add_trial(finished)
    trial = study.ask()
    for epoch, value in enumerate(own[: epochs - 1], start=1):
        trial.report(value, epoch)
        if trial.should_prune():
            return epoch
    return None


def _study(epochs: int) -> optuna.Study:
    try:
        import optuna
    except ImportError:
        raise SpecError(
            "stopping trials early needs optuna: pip install 'tunewise[tune]', or set 'stop: never' under tuning"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A step below `n_warmup_steps` stops nothing; epochs count from 1.
    behind = optuna.pruners.MedianPruner(n_startup_trials=LEAST_TRIALS, n_warmup_steps=math.ceil(epochs / 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # it has stood so since 2021
        pruner = optuna.pruners.PatientPruner(behind, patience=0)
    return optuna.create_study(direction="minimize", pruner=pruner)


def require_optuna() -> None:
    """Raise `SpecError` at once, rather than after the first trials."""
    _study(2)
