"""Several jobs that take turns in one process, and meet wherever one of them asks for something.

Each job runs in a thread of its own, of which exactly one runs at any time, so nothing in a job need know of the
others: what it does between two questions it does alone, with its own random numbers. Once every job that is still at
work has asked, all questions are answered together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from tunewise.packing.streams import Stream

Result = TypeVar("Result")

PATIENCE = 10.0
"""Seconds for the job at work to come to its next question, once its caller has been interrupted."""


class Abandoned(BaseException):
    """Raised in the jobs where their caller has been interrupted."""


class Seat:
    """A job's place: `ask` from within the job, the rest from without."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.stream = Stream()
        self.question: Any = None
        self.done = False
        self.seconds = 0.0
        """Its share of the time so far: its own turns, and its part of each answer."""
        self._since: float | None = None
        self._answer: Any = None
        self._error: BaseException | None = None
        self._go = threading.Semaphore(0)
        self._back = threading.Semaphore(0)

    def clock(self) -> float:
        """The same in the midst of its turn: what a clock would show that stands still while others are at work."""
        return self.seconds + (0.0 if self._since is None else time.monotonic() - self._since)

    def ask(self, question: Any) -> Any:
        """Wait until all jobs have asked; returns the answer to `question`, or raises what answering it raised."""
        self.question = question
        self._back.release()
        self._go.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        answer, self._answer = self._answer, None
        return answer

    def resume(self, answer: Any = None, error: BaseException | None = None) -> None:
        """Let the job go on until it asks again, or is done."""
        self._answer, self._error, self.question = answer, error, None
        self.stream.put()
        self._since = time.monotonic()
        self._go.release()
        self._back.acquire()
        self.seconds, self._since = self.clock(), None
        self.stream.take()

    def abandon(self) -> None:
        """Let the job end where it is: where it waits, or, if it is at work, where it next asks. A process that ended
        before that, with a thread at work in torch, would be aborted."""
        if self._since is not None:
            self._back.acquire(timeout=PATIENCE)
        if self.question is not None and not self.done:
            self.resume(error=Abandoned())


class Outcome(Generic[Result]):
    """What a job returned, or what it raised."""

    def __init__(self) -> None:
        self.result: Result | None = None
        self.error: BaseException | None = None


def in_lockstep(
    jobs: Sequence[Callable[[Seat], Result]], answer: Callable[[Mapping[Seat, Any]], Mapping[Seat, Any]]
) -> list[Outcome[Result]]:
    """Do the jobs side by side; `answer` gets the questions of all that are still at work, in the jobs' order, and runs
    in the caller's thread. What it raises is raised in every job that has asked."""
    before = Stream()
    seats = [Seat(number) for number in range(len(jobs))]
    outcomes: list[Outcome[Result]] = [Outcome() for _ in jobs]

    def work(job: Callable[[Seat], Result], seat: Seat, outcome: Outcome[Result]) -> None:
        seat._go.acquire()
        try:
            outcome.result = job(seat)
        except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is
            outcome.error = error
        finally:
            seat.done = True
            seat._back.release()

    for one in zip(jobs, seats, outcomes, strict=True):
        threading.Thread(target=work, args=one, daemon=True).start()
    waiting = seats
    answers: Mapping[Seat, Any] = {}
    failed: BaseException | None = None
    try:
        while waiting:
            for seat in waiting:
                seat.resume(answers.get(seat), failed)
            waiting = [seat for seat in waiting if not seat.done]
            answers, failed, since = {}, None, time.monotonic()
            try:
                answers = answer({seat: seat.question for seat in waiting}) if waiting else {}
            except Exception as error:  # noqa: BLE001 - raised again in the jobs, which know what to do about it
                failed = error
            for seat in waiting:
                seat.seconds += (time.monotonic() - since) / len(waiting)
    except BaseException:  # Ctrl-C in this thread: no job may be left at work, and the error goes on
        for seat in seats:
            seat.abandon()
        raise
    finally:
        before.put()
    return outcomes
