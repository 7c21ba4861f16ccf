"""Writing files so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from tunewise.errors import StoreError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write text (as UTF-8) or bytes by way of a temporary file beside it. Raises `StoreError` where the disk is full;
    what was there before stays."""
    data = content.encode() if isinstance(content, str) else content
    scratch: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        scratch = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.chmod(0o644)
        os.replace(scratch, path)
    except OSError as error:
        if is_disk_full(error):
            raise StoreError(no_room(path, len(data))) from None
        raise
    finally:
        if scratch is not None:
            scratch.unlink(missing_ok=True)


def is_disk_full(error: OSError) -> bool:
    """Whether a write failed because the disk, or one's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def no_room(path: Path, needed: int) -> str:
    """What to do about a full disk, with the figures."""
    place = next((folder for folder in (path, *path.parents) if folder.is_dir()), Path())
    return (
        f"no room to write {path}: {size(needed)} needed, {size(shutil.disk_usage(place).free)} free in {place}; "
        "make room (`tunewise runs gc` shows what may go) and start again: what was finished is kept"
    )


def size(count: float) -> str:
    """Bytes for people: '512 B', '1.4 MB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
