"""What runs say while they work, and how they are asked to stop. The command line draws it; tests record it.

Every event of a run says of which: several may go on side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunewise.errors import TunewiseError


@dataclass(frozen=True)
class RunStarted:
    run_id: str
    label: str
    seed: int
    total_steps: int
    first_step: int


@dataclass(frozen=True)
class StepDone:
    run_id: str
    step: int
    total_steps: int
    epoch: float
    loss: float


@dataclass(frozen=True)
class EpochDone:
    run_id: str
    epoch: int
    validation_loss: float
    metric: str
    value: float


@dataclass(frozen=True)
class Phase:
    """Another stretch of work within a run or a comparison: 'reading data', 'final evaluation', ... `detail`: how far
    it has come ('row 3 of 51'), where it takes long; for displays that can write over themselves. `run_id`: empty where
    it is no single run's."""

    name: str
    detail: str = ""
    run_id: str = ""


@dataclass(frozen=True)
class RunFinished:
    run_id: str
    label: str
    seed: int
    status: str
    seconds: float


Event = RunStarted | StepDone | EpochDone | Phase | RunFinished


INTERRUPTED_MESSAGE = "stopped; run the same command again to go on from the last checkpoint"


class Listener:
    """Receives events; `stop_requested` is looked at between steps and batches."""

    stop_requested = False

    def on(self, event: Event) -> None:
        """Take note of an event; does nothing here."""

    def check(self) -> None:
        """Raise `Interrupted` where a stop has been asked for."""
        if self.stop_requested:
            raise Interrupted(INTERRUPTED_MESSAGE)


class Interrupted(TunewiseError):
    """The user asked for a stop; everything needed to continue is on disk."""

    exit_code = 130


class Pruned(TunewiseError):
    """A listener ends this run for good, because it has fallen behind others; its record says so."""


class ForwardingListener(Listener):
    """Passes everything on, and the stop that is asked of the other; what a subclass hears besides is its affair."""

    def __init__(self, inner: Listener) -> None:
        self.inner = inner

    @property
    def stop_requested(self) -> bool:  # type: ignore[override]
        return self.inner.stop_requested

    def on(self, event: Event) -> None:
        self.inner.on(event)
