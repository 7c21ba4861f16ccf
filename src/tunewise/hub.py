"""Files of repositories on a hub, in the cache of huggingface_hub; their code is never run.

`hub:OWNER/NAME[@REVISION]/inner/path` names a file or folder of a data set. A revision with slashes is written with
%2F: `hub:CogComp/trec@refs%2Fconvert%2Fparquet/default/train/0000.parquet`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

from tunewise.cache import hub_cache
from tunewise.errors import SpecError, TunewiseError, first_line

HUB_PREFIX = "hub:"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PATH = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?(/(?P<inner>.+?))?/?")


@dataclass(frozen=True, slots=True)
class HubPath:
    """The parts of a `hub:` path; `inner` is "" for the repository itself."""

    repo: str
    revision: str | None
    inner: str

    def __str__(self) -> str:
        at = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"{HUB_PREFIX}{self.repo}{at}" + (f"/{self.inner}" if self.inner else "")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The fetched files of a repository, and their commit where it is known."""

    folder: Path
    commit: str | None


def parse_hub_path(path: str) -> HubPath:
    """The parts of the path. Raises `SpecError` for other text, and for a path that leaves the repository."""
    match = _PATH.fullmatch(path)
    inner = match["inner"] or "" if match else ""
    if match is None or ".." in Path(inner).parts:
        raise SpecError(
            f"{path!r} is no path on a hub; write hub:OWNER/NAME/inner/path, or hub:OWNER/NAME@REVISION/..."
        )
    return HubPath(match["repo"], unquote(match["revision"]) if match["revision"] else None, inner)


def fetch(
    repo: str,
    *,
    kind: Literal["model", "dataset"],
    revision: str | None = None,
    patterns: Sequence[str] = ("*",),
    error: type[TunewiseError] = SpecError,
    instead: str = "give a local one (--data)",
) -> Snapshot:
    """The files of `repo` that match `patterns`, at `revision` (a commit, branch or tag; the main branch unless given).
    Raises `error`, with the hub's reason and what to give `instead`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    cache = hub_cache()
    download = snapshot_download if cache is None else partial(snapshot_download, cache_dir=cache)
    try:
        folder = Path(download(repo, repo_type=kind, revision=revision, allow_patterns=list(patterns)))
    except PermissionError as fault:
        raise error(f"{fault.filename}: {fault.strerror}; HF_HOME moves the cache of the hub elsewhere") from None
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as fault:
        reason = textwrap.shorten(first_line(fault).partition(". ")[0].rstrip("."), 160)
        what = "model" if kind == "model" else "data set"
        raise error(
            f"{what} {repo!r} is no local folder and can't be fetched from the hub ({reason}); {instead}"
        ) from None
    return Snapshot(folder, folder.name if _COMMIT.fullmatch(folder.name) else None)


def hub_file(path: str) -> Path:
    """The local copy of a `hub:` path. Raises `SpecError` where the repository holds no such file."""
    parts, snapshot = _fetch_path(path)
    local = snapshot.folder / parts.inner
    if not local.exists():
        raise SpecError(f"{path}: the repository holds no such file or folder")
    return local


def pinned(path: str) -> str:
    """A `hub:` path with the commit of its files; any other path unchanged."""
    if not path.startswith(HUB_PREFIX):
        return path
    parts, snapshot = _fetch_path(path)
    return str(HubPath(parts.repo, snapshot.commit or parts.revision, parts.inner))


def _fetch_path(path: str) -> tuple[HubPath, Snapshot]:
    parts = parse_hub_path(path)
    patterns = [parts.inner, f"{parts.inner}/*"] if parts.inner else ["*"]
    return parts, fetch(parts.repo, kind="dataset", revision=parts.revision, patterns=patterns)
