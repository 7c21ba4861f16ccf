"""The two ways between a driver and its nodes: one runs folder that all see, or a home that all can reach.

A way has two ends. The driver's says which runs are its own, takes in what came of them, and asks them to stop; the
node's (`place`, which travels) does an attempt and hears of the stop.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from tunewise.errors import StoreError
from tunewise.spec import RunSpec
from tunewise.store.folders import RunStore
from tunewise.store.leases import LeaseHeld
from tunewise.store.records import RunRecord
from tunewise.sweeps.arrivals import bring
from tunewise.sweeps.attempt import Outcome, attempt, outcome_of
from tunewise.sweeps.away import attempt_away, place_of
from tunewise.sweeps.home import Damaged, Home
from tunewise.sweeps.log import Log
from tunewise.training.events import Event, Listener, RunStarted

LOOK = 1.0
"""Seconds between a run's looks at whether it is to stop, where that is a file."""
LOOK_HOME = 5.0
"""The same where it is at home: each look is a request."""


class Place(Protocol):
    """What a node needs to know."""

    @property
    def cwd(self) -> str:
        """The driver's working folder, which paths may be relative to."""
        ...

    def attempt(self, spec: RunSpec) -> Outcome:
        """Do a run, there."""
        ...


class Way(Protocol):
    """The driver's end."""

    patience: float
    """Seconds that runs have for their last checkpoint once a stop was asked for."""
    logs_begin: bool
    """Whether the driver notes that a run has begun; else its node does."""

    @property
    def place(self) -> Place: ...

    def take(self, run: RunSpec) -> Outcome | None:
        """Before a run is given to a node: what it has come to already, `held` where another driver has it; None where
        it is to be done."""
        ...

    def take_in(self, run: str, outcome: Outcome) -> Outcome:
        """What a node says of a run, once its folder is here. Raises `Damaged` where it did not arrive whole."""
        ...

    def finished(self, run: str) -> RunRecord | None:
        """The record of a run whose node is gone, had it come to its end before."""
        ...

    def release(self, run: str) -> None:
        """Whatever became of it, the run is no longer this driver's."""
        ...

    def stop(self) -> None:
        """Ask the runs under way to stop."""
        ...

    def close(self) -> None:
        """At the end."""
        ...


@dataclass(frozen=True)
class SharedPlace:
    """A node that sees the runs folder under the driver's path."""

    root: str
    folder: str
    stop: str
    cwd: str

    def attempt(self, spec: RunSpec) -> Outcome:
        node = os.uname().nodename
        if not Path(self.folder).is_dir():
            raise StoreError(
                f"node {node} does not see {self.folder}; give an --out that all nodes see under one path (a shared "
                "file system), or a --home that all can reach"
            )
        ears = _Ears(Path(self.stop).exists, LOOK, Log(Path(self.folder) / "log.txt"), node)
        return attempt(spec, RunStore(self.root), ears)


class Shared:
    """One runs folder for all. Its leases say whose a run is; a file in the sweep's folder asks for the stop."""

    patience = 30.0
    logs_begin = False

    def __init__(self, store: RunStore, folder: Path) -> None:
        self.store = store
        self._stop = folder.absolute() / f".stop-{uuid.uuid4().hex[:12]}"
        self.place = SharedPlace(str(store.root.absolute()), str(folder.absolute()), str(self._stop), str(Path.cwd()))

    def take(self, run: RunSpec) -> Outcome | None:
        return None  # its node takes the lease, and looks

    def take_in(self, run: str, outcome: Outcome) -> Outcome:
        return outcome

    def finished(self, run: str) -> RunRecord | None:
        return self.store.finished(run)

    def release(self, run: str) -> None:
        pass

    def stop(self) -> None:
        self._stop.touch()

    def close(self) -> None:
        self._stop.unlink(missing_ok=True)


@dataclass(frozen=True)
class HomePlace:
    """A node that shares nothing with the driver but the home."""

    url: str
    stop: str
    cwd: str

    def attempt(self, spec: RunSpec) -> Outcome:
        home = Home(self.url)

        def asked() -> bool:
            with contextlib.suppress(StoreError):  # the next look may reach it
                return home.is_marked(self.stop)
            return False

        return attempt_away(spec, home, place_of(self.url), _Ears(asked, LOOK_HOME))


class ByHome:
    """Runs come back by way of a home. The driver has the leases of those under way in its own runs folder, so that two
    drivers on one runs folder share the runs."""

    patience = 120.0
    logs_begin = True

    def __init__(self, store: RunStore, home: Home) -> None:
        self.store, self.home = store, home
        self._stop = f".stop-{uuid.uuid4().hex[:12]}"
        self.place = HomePlace(home.url, self._stop, str(Path.cwd()))
        self._leases: dict[str, contextlib.ExitStack] = {}
        self._stopping = False

    def take(self, run: RunSpec) -> Outcome | None:
        held = contextlib.ExitStack()
        try:
            held.enter_context(self.store.lease(run.id))
        except LeaseHeld:
            return Outcome(run.id, "held", 0.0, None)
        self._leases[run.id] = held
        if (done := self.store.finished(run.id)) is not None:  # by another driver, since the plan was made
            return outcome_of(done, 0.0, None)
        self.store.begin(run)
        return None

    def take_in(self, run: str, outcome: Outcome) -> Outcome:
        record = bring(self.home, run, self.store)
        if record is None:
            raise Damaged(f"{self.home.url}: run {run} ended as {outcome.status} and is not there")
        arrived = outcome_of(record, outcome.seconds, outcome.steps)
        return replace(arrived, note=outcome.note)

    def finished(self, run: str) -> RunRecord | None:
        if any(copy.ended for copy in self.home.copies(run)):
            with contextlib.suppress(Damaged):
                bring(self.home, run, self.store)
        return self.store.finished(run)

    def release(self, run: str) -> None:
        if run in self._leases:
            self._leases.pop(run).close()

    def stop(self) -> None:
        self._stopping = True
        self.home.mark(self._stop)

    def close(self) -> None:
        for run in list(self._leases):
            self.release(run)
        if self._stopping:
            with contextlib.suppress(StoreError):  # an empty file may stay: its name is nobody else's
                self.home.unmark(self._stop)


class _Ears(Listener):
    """A run's ears on its node: it stops once it is asked to; and it says when it has begun, where there is a log."""

    def __init__(self, asked: Callable[[], bool], every: float, log: Log | None = None, node: str = "") -> None:
        self.asked, self.every, self.log, self.node = asked, every, log, node
        self._stop = False
        self._looked = 0.0

    @property
    def stop_requested(self) -> bool:  # type: ignore[override]
        if not self._stop and time.monotonic() - self._looked > self.every:
            self._looked = time.monotonic()
            self._stop = self.asked()
        return self._stop

    def on(self, event: Event) -> None:
        if self.log is not None and isinstance(event, RunStarted):
            resumed = f" from step {event.first_step}" if event.first_step else ""
            self.log.say(f"begun {event.run_id} {event.label} seed {event.seed}{resumed} on {self.node}, {os.getpid()}")
