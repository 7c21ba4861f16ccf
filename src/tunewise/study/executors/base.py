"""The contract of an executor: takes jobs, passes on the events of their runs, returns the end of each."""

from __future__ import annotations

import pickle
import traceback
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tunewise.errors import TunewiseError
from tunewise.run import run
from tunewise.spec import RunSpec
from tunewise.store.folders import RunStore
from tunewise.training.events import Listener

POLL = 1.0
"""Seconds between looks at the user and at runs that other processes have."""


@dataclass(frozen=True)
class Job:
    """A run for an executor; can be pickled."""

    run: RunSpec
    track: tuple[str, ...] = ()
    is_trial: bool = False


class RemoteTraceback(Exception):
    """The cause of an error from another process: the traceback there, as text."""


@dataclass(frozen=True)
class JobEnd:
    """A job is over. Without an error the record of the run is in the store."""

    run_id: str
    error: Exception | None = None
    traceback: str = ""
    """Of the error, where it comes from another process: a pickled error has lost it."""

    @classmethod
    def to_send(cls, run_id: str, error: Exception) -> JobEnd:
        """The end of a job with an error that arrives in another process whatever its class is."""
        text = "".join(traceback.format_exception(error))
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 - an error class of a library, with an __init__ of its own
            error = TunewiseError(f"{type(error).__name__}: {error}")
        return cls(run_id, error, text)

    def received(self) -> JobEnd:
        """The same with the traceback as the cause of the error."""
        if self.error is not None and self.traceback:
            self.error.__cause__ = RemoteTraceback(f"in the worker\n{self.traceback}")
        return self


class WorkerDied(TunewiseError):
    """The process of a run ended before the run did. `killed`: from outside, so that another process may go on."""

    def __init__(self, message: str, killed: bool = True) -> None:
        super().__init__(message)
        self.killed = killed


class Executor(ABC):
    """Does jobs. As a context: on the way out runs under way are asked to write a checkpoint, and waited for.

    `listener` receives the events of all runs, in the thread that calls `wait`.
    """

    def __init__(self, store: RunStore, listener: Listener) -> None:
        self.store, self.listener = store, listener

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Jobs that may be under way at the same time; at least 1."""

    @abstractmethod
    def start(self, job: Job) -> None:
        """Take a job; called while fewer than `capacity` jobs are under way."""

    @abstractmethod
    def wait(self) -> JobEnd | None:
        """The next end of a job; None where there is none within about a second."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)

    @abstractmethod
    def close(self, error: BaseException | None) -> None:
        """Ask the runs under way to stop, and wait for them; not where `error` is a Ctrl-C."""


def do_job(job: Job, store: RunStore, listener: Listener, *, remote: bool = False) -> JobEnd:
    """Do a run in this process; `remote`: for another process, so that the error can be sent there."""
    try:
        run(job.run, store, listener=listener, track=job.track, is_trial=job.is_trial)
    except Exception as error:  # noqa: BLE001 - the loop decides what an error means to the study
        return JobEnd.to_send(job.run.id, error) if remote else JobEnd(job.run.id, error)
    return JobEnd(job.run.id)
