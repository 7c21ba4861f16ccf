"""The node's side of a home: a run is done in a folder of the node's own, and sent home from there.

The node's folder is `$TMPDIR/tunewise-UID/<hash of the home>`, with run folders as everywhere. A run's checkpoints go
home while it is trained, as often as a tenth of its time allows, and the last one when it is stopped; so that a node
that has never seen the run goes on from there. Once the finished folder is home the node's own is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tunewise.errors import StoreError, TunewiseError
from tunewise.models.load import model_digest
from tunewise.spec import RunSpec
from tunewise.store.folders import RunStore
from tunewise.store.leases import LeaseHeld
from tunewise.sweeps.attempt import Outcome, attempt
from tunewise.sweeps.home import Home
from tunewise.tasks.build import KINDS
from tunewise.training.checkpoints import SEAL, step_of
from tunewise.training.events import Event, Interrupted, Listener, Relay, RunStarted

SHARE = 0.1
"""Part of a run's time that sending its checkpoints may take."""
_SCRATCH = re.compile(r"\..+\.[a-z0-9_]{8}")


def attempt_away(spec: RunSpec, home: Home, place: RunStore, listener: Listener) -> Outcome:
    """One attempt at a run on this node, as `attempt`; what becomes of it is at home before this returns.

    Raises `Interrupted` once the last checkpoint is home, and `StoreError` where this node's disk or the home can't be
    used, or where its model or data are not those of the sweep.
    """
    _clear(home, place)
    known = home.copies(spec.id)
    ended = next((copy for copy in known if copy.ended), None)
    if ended is not None and ended.status is not None:  # by another node, which died or was given up before it said so
        return Outcome(spec.id, ended.status, 0.0, None)
    _check_sources(spec)
    if not place.is_leased(spec.id):
        _go_on_from_home(spec.id, home, place)
    sender = _Sending(listener, home, spec.id, place.folder(spec.id), max((copy.step for copy in known), default=0))
    try:
        outcome = attempt(spec, place, sender)
    except Interrupted:
        sender.send()
        raise
    if outcome.status == "held":
        return outcome
    try:
        with place.lease(spec.id) as folder:
            record = place.record(spec.id)
            if record is not None:  # else another process of this node has sent it
                home.send(spec.id, folder, names_of(folder), status=record.status, step=_step(folder))
            shutil.rmtree(folder)
    except LeaseHeld:
        return Outcome(spec.id, "held", 0.0, None)
    return replace(outcome, note=sender.note())


def place_of(url: str) -> RunStore:
    """This node's own runs folder for a home; nobody else's."""
    root = Path(tempfile.gettempdir()) / f"tunewise-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != os.getuid() or root.is_symlink():
        raise StoreError(
            f"{root} on {os.uname().nodename} belongs to somebody else; set TMPDIR to another folder there"
        )
    return RunStore(root / hashlib.sha256(url.encode()).hexdigest()[:16])


def names_of(folder: Path) -> list[str]:
    """The files of a run's folder that go home: all but temporary ones and checkpoints older than the newest whole
    one."""
    newest = _newest(folder)
    names = []
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if not file.is_file() or any(_SCRATCH.fullmatch(part) for part in name.parts):
            continue
        if name.parts[0] == "checkpoints" and (newest is None or not file.is_relative_to(newest)):
            continue
        names.append(name.as_posix())
    return names


class _Sending(Relay):
    """Passes everything on, and sends what a run has come to whenever it has a new checkpoint and time for it."""

    def __init__(self, inner: Listener, home: Home, run: str, folder: Path, sent: int) -> None:
        """`sent`: the step that is at home already."""
        super().__init__(inner)
        self.home, self.run, self.folder, self.sent = home, run, folder, sent
        self.first_step = 0
        self.failures = 0
        self._next = 0.0

    def on(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.first_step = event.first_step
        super().on(event)
        if time.monotonic() >= self._next and _step(self.folder) > self.sent:
            self.send()

    def send(self) -> None:
        """What there is now. Training goes on where it can't be sent: the next checkpoint is tried again."""
        since = time.monotonic()
        step = _step(self.folder)
        if step <= self.sent:
            return
        try:
            self.home.send(self.run, self.folder, names_of(self.folder), status=None, step=step)
            self.sent = step
        except StoreError:
            self.failures += 1
        now = time.monotonic()
        self._next = now + (now - since) * (1 - SHARE) / SHARE

    def note(self) -> str:
        """For the log, when the run has ended."""
        said = [f"on {os.uname().nodename}"]
        if self.first_step:
            said.append(f"from step {self.first_step}")
        if self.failures:
            said.append(f"{self.failures} checkpoints could not be sent home")
        return ", ".join(said)


def _clear(home: Home, place: RunStore) -> None:
    """Remove what this node has of runs that have ended at others since."""
    for run in place.ids():
        if not place.is_leased(run) and any(copy.ended for copy in home.copies(run)):
            with contextlib.suppress(LeaseHeld), place.lease(run) as folder:
                shutil.rmtree(folder)


def _go_on_from_home(run: str, home: Home, place: RunStore) -> None:
    """Bring the furthest checkpoint that is at home, where this node has none that is as far."""
    for copy in home.copies(run):
        folder = place.folder(run)
        if copy.step <= _step(folder):
            return
        place.root.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=f".{run}.", dir=place.root, ignore_cleanup_errors=True) as scratch,
            contextlib.suppress(StoreError),  # a damaged copy, or another process was faster
            place.lease(run),
        ):
            home.fetch(copy, Path(scratch) / run)
            shutil.rmtree(folder)
            os.replace(Path(scratch) / run, folder)
            return


def _check_sources(spec: RunSpec) -> None:
    """Whether this node's copies of model and data are those that the sweep was planned with."""
    node = os.uname().nodename
    try:
        found = {
            spec.model.path: (model_digest(spec.model), spec.model.digest),
            spec.data.path: (KINDS[spec.task].digest(spec.data), spec.data.digest),
        }
    except TunewiseError as error:
        raise StoreError(f"node {node}: {error}; with --home every node has its own copy under this path") from None
    for path, (here, planned) in found.items():
        if planned is not None and here != planned:
            raise StoreError(f"node {node}: {path} is not what the sweep was planned with (its content differs)")


def _newest(folder: Path) -> Path | None:
    sealed = [seal.parent for seal in folder.glob(f"checkpoints/checkpoint-*/{SEAL}")]
    return max(sealed, key=step_of, default=None)


def _step(folder: Path) -> int:
    newest = _newest(folder)
    return 0 if newest is None else step_of(newest)
