"""Files of a hub's repositories, fetched once into huggingface_hub's own cache; no code of theirs is ever run.

A path `hub:OWNER/NAME[@REVISION]/inner/path` names a file or folder of a data set's repository. A revision with
slashes is written with %2F: `hub:CogComp/trec@refs%2Fconvert%2Fparquet/default/train/0000.parquet`. What was fetched
is known by its commit, with which the path can be pinned. `HF_HUB_OFFLINE=1` takes what the cache has.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

from tunewise.errors import SpecError, TunewiseError

HUB_PREFIX = "hub:"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PATH = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?(/(?P<inner>.+?))?/?")


@dataclass(frozen=True, slots=True)
class HubPath:
    """A `hub:` path taken apart; `inner` is "" for the whole repository."""

    repo: str
    revision: str | None
    inner: str

    def __str__(self) -> str:
        at = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"{HUB_PREFIX}{self.repo}{at}" + (f"/{self.inner}" if self.inner else "")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository's files at one commit, as far as they were asked for; `commit` is None where none is known."""

    folder: Path
    commit: str | None


def parse_hub_path(path: str) -> HubPath:
    """Raises `SpecError` for what is no `hub:` path, or one that leaves the repository."""
    found = _PATH.fullmatch(path)
    inner = found["inner"] or "" if found else ""
    if found is None or ".." in Path(inner).parts:
        raise SpecError(
            f"{path!r} is no path on a hub; write hub:OWNER/NAME/inner/path, or hub:OWNER/NAME@REVISION/..."
        )
    return HubPath(found["repo"], unquote(found["revision"]) if found["revision"] else None, inner)


def fetch(
    repo: str,
    *,
    kind: Literal["model", "dataset"],
    revision: str | None = None,
    patterns: Sequence[str] = ("*",),
    error: type[TunewiseError] = SpecError,
    instead: str = "give a local one (--data)",
) -> Snapshot:
    """The files of `repo` that match `patterns`, at `revision` (a commit, a branch, a tag; the main branch unless
    given). Raises `error` where they can't be had: one line with the hub's reason and what to give `instead`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(repo, repo_type=kind, revision=revision, allow_patterns=list(patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as fault:
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0].partition(". ")[0].rstrip(".")
        what = "model" if kind == "model" else "data set"
        raise error(
            f"{what} {repo!r} is no folder here and can't be had from the hub ({textwrap.shorten(reason, 160)}); "
            + instead
        ) from None
    folder = Path(found)
    return Snapshot(folder, folder.name if _COMMIT.fullmatch(folder.name) else None)


def hub_file(path: str) -> Path:
    """The local copy of what a `hub:` path names. Raises `SpecError` where the repository holds no such file."""
    wanted = parse_hub_path(path)
    snapshot = _fetched(wanted)
    found = snapshot.folder / wanted.inner
    if not found.exists():
        raise SpecError(f"{path}: the repository holds no such file or folder")
    return found


def pinned(path: str) -> str:
    """A `hub:` path with the commit that its files are of; any other path as it is."""
    if not path.startswith(HUB_PREFIX):
        return path
    wanted = parse_hub_path(path)
    return str(HubPath(wanted.repo, _fetched(wanted).commit or wanted.revision, wanted.inner))


def _fetched(wanted: HubPath) -> Snapshot:
    patterns = [wanted.inner, f"{wanted.inner}/*"] if wanted.inner else ["*"]
    return fetch(wanted.repo, kind="dataset", revision=wanted.revision, patterns=patterns)
