"""A full disk, whoever meets it first and whatever it calls it, as one line that says how much room is needed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from tunewise.errors import StoreError
from tunewise.store.files import is_disk_full, size

_SAID = ("no space left", "disk quota exceeded", "os error 28")
_WRITER = ("inline_container", "pytorchstreamwriter", "basic_ios", "iostream")
"""Torch's writer of archives says that a write failed, but not why."""
_NOTHING = 2**20
"""Bytes below which a disk is full for torch's writer, which leaves its half-written file there."""


@contextlib.contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turns what a write to a full disk raises within a run (by `torch.save`, safetensors, PEFT, the Trainer) into a
    `StoreError`; other errors pass. What was whole before is whole after: all writes that count end in a rename."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        if not _met_full_disk(error, folder):
            raise
        free = size(shutil.disk_usage(folder).free)
        raise StoreError(
            f"no room to go on in {folder}: {free} free, and {_checkpoint(folder)}; make room (`tunewise runs gc` "
            "shows what may go) and start again: it goes on from its last checkpoint"
        ) from None


def _met_full_disk(error: BaseException, folder: Path) -> bool:
    text = str(error).lower()
    if isinstance(error, OSError) and is_disk_full(error):
        return True
    if any(words in text for words in _SAID):
        return True
    if isinstance(error, RuntimeError) and any(words in text for words in _WRITER):
        return shutil.disk_usage(folder).free < _NOTHING
    return False


def _checkpoint(folder: Path) -> str:
    """What the run's largest checkpoint takes, be it whole or as far as it came."""
    sizes = [
        sum(file.stat().st_size for file in one.rglob("*") if file.is_file())
        for one in folder.glob("checkpoints/checkpoint-*")
    ]
    if len(sizes) > 1:
        return f"a checkpoint takes {size(max(sizes))} (two are kept, and a third while it is written)"
    so_far = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"the {size(so_far)} that it has written so far are not enough for its first checkpoints"
