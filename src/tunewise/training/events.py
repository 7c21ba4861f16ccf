"""Events of runs, and how runs are asked to stop. Several runs may be in progress at a time."""

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
    epoch: float
    validation_loss: float
    metric: str
    value: float


@dataclass(frozen=True)
class Phase:
    """A part of the work began: 'reading data', 'measuring', ... `detail`: its progress, where it takes long ('row 3 of
    51'). `run_id`: empty where the work belongs to no single run."""

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
    """Receives events; `stop_requested` is read between steps and between batches."""

    stop_requested = False

    def on(self, event: Event) -> None:
        """Receive an event."""

    def check(self) -> None:
        """Raise `Interrupted` where a stop was requested."""
        if self.stop_requested:
            raise Interrupted(INTERRUPTED_MESSAGE)


class Interrupted(TunewiseError):
    """The user asked for a stop; everything needed to continue is on disk."""

    exit_code = 130


class ForwardingListener(Listener):
    """Passes events on to another listener, and the stop that is requested of that one back."""

    def __init__(self, inner: Listener) -> None:
        self.inner = inner

    @property
    def stop_requested(self) -> bool:  # type: ignore[override]
        return self.inner.stop_requested

    def on(self, event: Event) -> None:
        self.inner.on(event)

    def check(self) -> None:
        self.inner.check()
