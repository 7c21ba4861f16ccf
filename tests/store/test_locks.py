"""Locks: one holder at a time, however often others look, even when it is killed."""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tunewise.errors import StoreError
from tunewise.store import locks
from tunewise.store.folders import RunStore

RUN = "0123456789abcdef"
HOLDER = """
import sys, time
from pathlib import Path
from tunewise.store.locks import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_held_until_its_process_ends_even_by_sigkill(tmp_path: Path) -> None:
    file = tmp_path / "locks" / RUN
    assert not locks.is_held(file)
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        assert locks.is_held(file)
        assert locks.holder(file).startswith(f"process {child.pid} on ")
        with pytest.raises(locks.RunLocked, match=f"process {child.pid} on "), locks.hold(file):
            pass
    finally:
        child.kill()
        child.wait()
    assert not locks.is_held(file)
    with locks.hold(file):
        assert locks.is_held(file)


def test_looking_never_makes_a_run_fail(tmp_path: Path) -> None:
    """Somebody looks, and is slow about it: the lock is had as soon as that is over."""
    file = tmp_path / RUN
    file.touch()
    looking = file.open("rb")
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert not locks.is_held(file)  # two may look at once
    threading.Timer(0.2, looking.close).start()
    begun = time.monotonic()
    with locks.hold(file):
        assert time.monotonic() - begun > 0.1
        with pytest.raises(locks.RunLocked), locks.hold(file):
            pass
    assert not locks.is_held(file)


def test_a_look_that_never_ends_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    (tmp_path / RUN).touch()
    with (tmp_path / RUN).open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        with pytest.raises(locks.RunLocked), locks.hold(tmp_path / RUN):
            pass


def test_two_threads_never_hold_one_lock_while_others_look(tmp_path: Path) -> None:
    file = tmp_path / RUN
    inside, worst, held = [0], [0], [0]
    deadline = time.monotonic() + 60

    def work() -> None:
        while held[0] < 60 and time.monotonic() < deadline:
            with contextlib.suppress(locks.RunLocked), locks.hold(file):
                inside[0] += 1
                worst[0] = max(worst[0], inside[0])
                held[0] += 1
                time.sleep(0.0005)
                inside[0] -= 1
            time.sleep(0.0005)

    def look() -> None:
        while held[0] < 60 and time.monotonic() < deadline:
            locks.is_held(file)

    threads = [threading.Thread(target=what) for what in (work, work, work, look, look)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst == [1] and held[0] >= 60


def test_a_run_says_who_has_it(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    with store.lock(RUN):
        assert store.is_locked(RUN)
        with (
            pytest.raises(StoreError, match=f"run {RUN} is being run by process .* on .*; wait for it"),
            store.lock(RUN),
        ):
            pass
    assert not store.is_locked(RUN)


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    message = r"can't be locked \(No locks available\); put the runs on"
    with pytest.raises(StoreError, match=message), locks.hold(tmp_path / RUN):
        pass
