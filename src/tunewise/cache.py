"""The folders of caches, also for a user without a home folder (a container with an arbitrary user id)."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path


def cache_folder() -> Path:
    """`$TUNEWISE_CACHE`, else `$XDG_CACHE_HOME/tunewise`, else `~/.cache/tunewise`; not created here. Without a home
    folder to write into it is under the temporary folder, with a warning."""
    if own := os.environ.get("TUNEWISE_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "tunewise"
    try:
        folder = Path.home() / ".cache" / "tunewise"
        if _can_be_used(folder):
            return folder
    except RuntimeError:  # no HOME, and no entry for the user
        pass
    folder = Path(tempfile.gettempdir()) / f"tunewise-{os.getuid()}"
    warnings.warn(
        f"no home folder to write into: the cache is {folder}; TUNEWISE_CACHE sets another, and "
        "HF_HOME one for files of the hub",
        stacklevel=2,
    )
    return folder


def hub_cache() -> Path | None:
    """A cache for files of the hub, where huggingface_hub's own is neither there nor can be made; None: its own."""
    from huggingface_hub.constants import HF_HUB_CACHE

    own = Path(HF_HUB_CACHE)
    if own.is_absolute() and (os.access(own, os.R_OK) or _can_be_used(own)):  # "~/.cache" stays as it is without a home
        return None
    home = cache_folder() / "huggingface"
    os.environ.setdefault("HF_HOME", str(home))  # for other processes, and for what reads it later
    return home / "hub"


def _can_be_used(folder: Path) -> bool:
    """Whether the folder can be written into, or made."""
    existing = next(path for path in (folder, *folder.parents) if os.access(path, os.F_OK))
    return os.access(existing, os.W_OK)
