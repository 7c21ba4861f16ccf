"""Home: where runs go that are done on nodes without a common file system, at any address that fsspec knows.

HOME/<run id>/<copy>/...      a run's folder as it was at one moment
HOME/<run id>/<copy>.json     the list of its files with their sizes and sha256; written last
HOME/.stop-...                while a driver's runs are to stop

The contract: a copy counts once its list is there, is never changed after that, and is believed only as far as its
files have the listed checksums. So half an upload, a torn list and a flipped byte are all the same as no copy, and two
nodes that send one run never mix their files. Nothing is asked of the file system but to write, read, list and remove:
no locks, no renames. A copy takes the place of those of its run that are worse: not ended, or less far, or older.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from tunewise.errors import SpecError, StoreError, TunewiseError
from tunewise.store.documents import CHECKSUM, checksum
from tunewise.store.files import sha256
from tunewise.store.names import RUN_ID
from tunewise.store.records import Status

PAUSES = (1.0, 5.0, 25.0)
"""Seconds before a file is read or written again where that failed; one more failure after the last is an error."""
_ENDED = ("done", "diverged")

Result = TypeVar("Result")


class NotThere(StoreError):
    """What was asked for is not at home: trying again would not help."""


class Damaged(StoreError):
    """What is at home of a run can't be trusted; it has to be done again."""


class Sent(BaseModel):
    """One file of a copy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class Copy(BaseModel):
    """The list of a copy: what it is of, and its files by their names in the run's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    name: str
    status: Status | None
    """Of the run's record; None for a run under way, with what is needed to go on."""
    step: int
    """Of its checkpoint; 0 where it has none."""
    files: dict[str, Sent]

    @property
    def ended(self) -> bool:
        """Whether the run came to its end, so that it is not done again."""
        return self.status in _ENDED

    @property
    def standing(self) -> tuple[bool, int, str]:
        """What of two copies is the better one: ended, then further, then later (names begin with the time)."""
        return self.ended, self.step, self.name


class Home:
    """A folder at an fsspec address: 's3://bucket/path', 'file:///mnt/x', 'memory://x'."""

    def __init__(self, url: str) -> None:
        """Raises `SpecError` for an address of no known kind, or of one whose package is not installed."""
        import fsspec

        self.url = url
        try:
            self.fs, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise SpecError(f"--home {url}: {error}, here and on the nodes") from None
        except ValueError as error:
            raise SpecError(
                f"--home {url}: {error}; give an address that fsspec knows, such as s3://bucket/path"
            ) from None
        self.root = root.rstrip("/")

    def check(self) -> None:
        """Write a small file, read it and remove it. Raises `SpecError` where that can't be done."""
        path = self._at(f".check-{uuid.uuid4().hex[:12]}")
        try:
            with self._told("use"):
                self._make(self.root)
                self.fs.pipe_file(path, b"tunewise")
                same = self.fs.cat_file(path) == b"tunewise"
                self.fs.rm_file(path)
        except StoreError as error:
            raise SpecError(f"--home {error}; check the address and the credentials") from None
        if not same:
            raise SpecError(f"--home {self.url}: what is written there does not come back as it was")

    def send(self, run: str, folder: Path, names: Iterable[str], *, status: Status | None, step: int) -> Copy:
        """Send files of a run's folder as a new copy, and remove worse ones. Nobody may write to the files meanwhile.
        Raises `StoreError` where it can't be sent: then there is no new copy, and those that there were are left."""
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        files = {}
        for one in names:
            files[one] = Sent(bytes=(folder / one).stat().st_size, sha256=sha256(folder / one))
            self._put(folder / one, self._at(run, name, one), files[one].bytes)
        copy = Copy(run=run, name=name, status=status, step=step, files=files)
        content = copy.model_dump(mode="json")
        content[CHECKSUM] = checksum(content)
        text = json.dumps(content, indent=1).encode()
        self._patiently("write to", lambda: self.fs.pipe_file(self._at(run, f"{name}.json"), text))
        for other in self.copies(run):
            if other.standing < copy.standing:
                self.drop(other)
        return copy

    def runs(self) -> set[str]:
        """The ids of the runs of which there may be a copy."""
        return {name for name in self._list(self.root) if RUN_ID.fullmatch(name)}

    def copies(self, run: str) -> list[Copy]:
        """The copies of a run whose lists are whole, the best first."""
        found = [
            copy
            for name in self._list(self._at(run))
            if name.endswith(".json") and (copy := self._read(run, name)) is not None
        ]
        return sorted(found, key=lambda copy: copy.standing, reverse=True)

    def fetch(self, copy: Copy, into: Path) -> None:
        """Bring the files of a copy into a new folder. Raises `Damaged` where one is missing or not as it was sent, and
        `StoreError` where it can't be read now; what has arrived until then is not to be used."""
        for name, sent in copy.files.items():
            if not _stays_inside(name):
                raise Damaged(f"{self.url}: a copy of run {copy.run} names {name!r}, which lies outside its folder")
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            path = self._at(copy.run, copy.name, name)
            try:
                self._get(path, target)
                if sha256(target) != sent.sha256:  # on the way, perhaps
                    self._get(path, target)
            except NotThere as error:
                raise Damaged(str(error)) from None
            if sha256(target) != sent.sha256:
                raise Damaged(f"{self.url}/{copy.run}/{copy.name}/{name} is not as it was sent (its checksum differs)")

    def drop(self, copy: Copy) -> None:
        """Remove a copy, the list first: without it the rest is nothing. What can't be removed takes room and does no
        harm."""
        with contextlib.suppress(StoreError), self._told("write to"):
            self.fs.rm_file(self._at(copy.run, f"{copy.name}.json"))
            self.fs.rm(self._at(copy.run, copy.name), recursive=True)

    def mark(self, name: str) -> None:
        """Put a sign there that others look for."""
        self._patiently("write to", lambda: self.fs.pipe_file(self._at(name), b""))

    def is_marked(self, name: str) -> bool:
        """Whether that sign is there. Raises `StoreError` where that can't be seen."""
        with self._told("read"):
            self.fs.invalidate_cache()
            return bool(self.fs.exists(self._at(name)))

    def unmark(self, name: str) -> None:
        """Take a sign away, if it is there."""
        if self.is_marked(name):
            with self._told("write to"):
                self.fs.rm_file(self._at(name))

    def _at(self, *parts: str) -> str:
        return "/".join([self.root, *parts])

    def _make(self, folder: str) -> None:
        """Where there are folders. A store of objects needs none, and might make a bucket of a mistyped name."""
        if folder.startswith("/"):
            self.fs.makedirs(folder, exist_ok=True)

    def _put(self, file: Path, path: str, size: int) -> None:
        def put() -> None:
            self._make(path.rpartition("/")[0])
            self.fs.put_file(str(file), path)
            self.fs.invalidate_cache()
            there = self.fs.size(path)
            if there != size:
                raise StoreError(f"{self.url}: {there} of {size} bytes of {file.name} arrived")

        self._patiently("write to", put)

    def _get(self, path: str, file: Path) -> None:
        self._patiently("read", lambda: self.fs.get_file(path, str(file)))

    def _list(self, folder: str) -> list[str]:
        def names() -> list[str]:
            self.fs.invalidate_cache()
            return sorted(str(path).rstrip("/").rpartition("/")[2] for path in self.fs.ls(folder, detail=False))

        try:
            return self._patiently("list", names)
        except NotThere:
            return []

    def _read(self, run: str, name: str) -> Copy | None:
        """A list; None where it is torn, or gone since it was seen."""
        try:
            content: dict[str, Any] = json.loads(self._patiently("read", lambda: self.fs.cat_file(self._at(run, name))))
            written = content.pop(CHECKSUM)
            copy = Copy.model_validate(content)
        except (NotThere, ValueError, LookupError, TypeError, AttributeError):
            return None
        return copy if written == checksum(content) and (copy.run, f"{copy.name}.json") == (run, name) else None

    def _patiently(self, verb: str, work: Callable[[], Result]) -> Result:
        for pause in PAUSES:
            try:
                with self._told(verb):
                    return work()
            except NotThere:
                raise
            except StoreError:
                time.sleep(pause)
        with self._told(verb):
            return work()

    @contextlib.contextmanager
    def _told(self, verb: str) -> Iterator[None]:
        """Turns what a file system raises into one line."""
        try:
            yield
        except TunewiseError:
            raise
        except FileNotFoundError as error:
            raise NotThere(f"{self.url}: can't {verb} it (not found: {error})") from None
        except Exception as error:  # noqa: BLE001 - every kind of file system has errors of its own
            said = " ".join(str(error).split()) or "no message"
            raise StoreError(f"{self.url}: can't {verb} it ({type(error).__name__}: {said[:200]})") from None


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and bool(path.parts)
