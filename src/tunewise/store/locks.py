"""Locks: one process at a time has a run. A lock on a small file, which ends with the process however that ends.

Whoever only wants to know whether a lock is held takes a shared lock for an instant; whoever wants the lock tells
such a look from a holder and tries again, so that looking never makes a run fail. The locks are `flock`'s, which a
network file system keeps between machines, too.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tunewise.errors import StoreError

PATIENCE = 5.0
"""Seconds of waiting for others to have looked."""


class RunLocked(StoreError):
    """Another process has it; `str(error)` says which."""


@contextlib.contextmanager
def taken(file: Path) -> Iterator[None]:
    """Hold the lock until the end of the block. Raises `RunLocked` where another has it, and `StoreError` on a file
    system without locks."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file) as handle:
        with contextlib.suppress(OSError):  # on a full disk the lock is held all the same, only without a name
            os.truncate(handle.fileno(), 0)
            os.write(handle.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


def is_held(file: Path) -> bool:
    """Whether a process has this lock now."""
    try:
        with file.open("rb") as handle:
            return not _try(handle, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def holder(file: Path) -> str:
    """Who has it, or had it last: 'process 123 on host'."""
    try:
        return file.read_text(encoding="utf-8").strip() or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"


def remove(file: Path) -> bool:
    """Remove the file of a lock that nobody holds; False where somebody does. Whoever opened it before and locks it
    later sees that it is gone, and starts over with a new one."""
    try:
        with file.open("rb+") as handle:
            if not _try(handle, fcntl.LOCK_EX) or not _is(handle, file):
                return False
            file.unlink()
    except FileNotFoundError:
        pass
    return True


def _locked(file: Path) -> IO[bytes]:
    deadline = time.monotonic() + PATIENCE
    while True:
        handle = file.open("a+b")
        if _try(handle, fcntl.LOCK_EX):
            if _is(handle, file):
                return handle
        elif not _try(handle, fcntl.LOCK_SH) or time.monotonic() > deadline:
            handle.close()
            raise RunLocked(holder(file))
        handle.close()
        time.sleep(random.uniform(0.0005, 0.003))  # two that look at once must not stay in step


def _try(handle: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise StoreError(
            f"{handle.name} can't be locked ({error.strerror}); put the runs on a file system with locks"
        ) from None
    return True


def _is(handle: IO[bytes], file: Path) -> bool:
    """Whether the file of that name is still the one that was opened."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), file.stat())
    except FileNotFoundError:
        return False
