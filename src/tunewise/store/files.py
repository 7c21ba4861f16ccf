"""Writing files so that a reader sees the old or the new one, never half of one; and what to say of a full disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tunewise.errors import StoreError

_FULL_DISK_PHRASES = ("no space left", "disk quota exceeded", "os error 28")
_TORCH_WRITER = ("inline_container", "pytorchstreamwriter", "basic_ios", "iostream")
"""The archive writer of torch says that a write failed, but not why."""
_ALMOST_FULL = 2**20
"""Free bytes below which a failure of that writer means a full disk; it leaves its half-written file there."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write text (as UTF-8) or bytes by way of a temporary file beside it. Raises `StoreError` where the disk is full;
    what was there before stays."""
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as scratch:
            scratch.write_bytes(data)
    except OSError as error:
        if is_disk_full(error):
            raise StoreError(no_room(path, len(data))) from None
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write, which takes the place of `path` at the end of the block."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        follow_umask(scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def follow_umask(path: Path) -> None:
    """Give a file, or a folder with all in it, the permissions of newly created ones: temporary files are private, and
    so is what safetensors writes."""
    mask = os.umask(0)
    os.umask(mask)
    for entry in (path, *path.rglob("*")) if path.is_dir() else (path,):
        if not entry.is_symlink():
            special = entry.stat().st_mode & 0o7000  # the set-group-id bit of a shared folder stays
            entry.chmod(special | (0o777 if entry.is_dir() else 0o666) & ~mask)


def is_disk_full(error: OSError) -> bool:
    """Whether a write failed because the disk, or the user's quota, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def no_room(path: Path, needed: int) -> str:
    """What to do about a full disk, with the figures."""
    place = next((folder for folder in (path, *path.parents) if folder.is_dir()), Path())
    return (
        f"no room to write {path}: {size(needed)} needed, {size(shutil.disk_usage(place).free)} free in {place}; "
        "make room (`tunewise runs gc` shows what may go) and start again: what was finished is kept"
    )


@contextlib.contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turn what a write to a full disk raises within a run (by `torch.save`, safetensors, PEFT, the Trainer) into a
    `StoreError`; other errors pass. Complete files stay complete: all writes that count end in a rename."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        if not _is_full_disk(error, folder):
            raise
        free = size(shutil.disk_usage(folder).free)
        raise StoreError(
            f"no room to go on in {folder}: {free} free, and {_checkpoint_size(folder)}; make room (`tunewise runs gc` "
            "shows what may go) and start again: it goes on from its last checkpoint"
        ) from None


def _is_full_disk(error: Exception, folder: Path) -> bool:
    text = str(error).lower()
    if isinstance(error, OSError) and is_disk_full(error):
        return True
    if any(phrase in text for phrase in _FULL_DISK_PHRASES):
        return True
    if isinstance(error, RuntimeError) and any(word in text for word in _TORCH_WRITER):
        return shutil.disk_usage(folder).free < _ALMOST_FULL
    return False


def _checkpoint_size(folder: Path) -> str:
    sizes = [disk_size(checkpoint) for checkpoint in folder.glob("checkpoints/checkpoint-*")]
    if len(sizes) > 1:
        return f"a checkpoint takes {size(max(sizes))} (two are kept, and a third while it is written)"
    return f"the {size(disk_size(folder))} that it has written so far are not enough for its first checkpoints"


def disk_size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        return sum(disk_size(inner) for inner in path.iterdir())
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def size(count: float) -> str:
    """Bytes in words: '512 B', '1.4 MB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def sha256(path: Path) -> str:
    """Hex digest of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
