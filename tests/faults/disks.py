"""A real disk of a few kilobytes to fill up, where the tests may mount one."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(place: Path, kilobytes: int) -> Iterator[Path]:
    """A memory file system mounted at `place`; skips the test where that takes rights that it does not have."""
    place.mkdir(parents=True, exist_ok=True)
    size = f"size={kilobytes}k"
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", place], check=False).returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def grow(place: Path, kilobytes: int) -> None:
    """Make the disk larger, as somebody does who makes room."""
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", place], check=True)


def fill(folder: Path) -> Path:
    """Write a file until nothing more goes in."""
    file = folder / "filler"
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as handle:
        while True:
            handle.write(b"x" * 1024)
    return file
