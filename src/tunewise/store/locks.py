"""Run locks: one process at a time has a run. The lock is released when its process ends, however it ends.

`filelock` takes them by `flock`, which works between machines on a network file system, too. A lock file is never
removed: a lock on a file without a name would keep nobody out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from tunewise.errors import StoreError

PATIENCE = 0.5
"""Seconds to wait for a lock: a process that only looks whether it is held takes it for an instant."""


class RunLocked(StoreError):
    """Another process has the run; `str(error)` says which."""


@contextlib.contextmanager
def hold(file: Path) -> Iterator[None]:
    """Hold the lock until the end of the block. Raises `RunLocked`, or `StoreError` on a file system without locks."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, timeout=PATIENCE, poll_interval=0.01)
    try:
        lock.acquire()
    except Timeout:
        raise RunLocked(holder(file)) from None
    except OSError as error:
        raise StoreError(
            f"{file} can't be locked ({error.strerror}); put the runs on a file system with locks"
        ) from None
    try:
        with contextlib.suppress(OSError):  # on a full disk the lock is held all the same, only without a name
            file.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        lock.release()


def is_held(file: Path) -> bool:
    """Whether a process has this lock now. Looking makes no other process fail."""
    try:
        with file.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except (BlockingIOError, PermissionError):
        return True
    return False


def holder(file: Path) -> str:
    """Who has the lock, or had it last: 'process 123 on host'."""
    try:
        return file.read_text(encoding="utf-8").strip() or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"
