"""OfficeHome and CIFAR-10 from folders of images or parquet files, without decoding them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import concat_tables, parquet

from tunewise.errors import DataError
from tunewise.locate import cache_folder
from tunewise.papers.reading import NAMES, find_files
from tunewise.spec import DataSpec
from tunewise.store.files import write_atomically
from tunewise.tasks.image_files import SUFFIXES, looks_like_images

if TYPE_CHECKING:
    from tunewise.papers.sets import PaperSet

_DOMAINS = ("Art", "Clipart", "Product", "Real World")


def make_spec(data: PaperSet, folder: Path, origin: str) -> DataSpec:
    """The images of a set. Raises `DataError` where the folder has no images in a known form.

    OfficeHome has no parts: its domains are one set, split 70 : 15 : 15. CIFAR-10 has a test part, and 5 % of train are
    for validation.
    """
    notes = [origin]
    if data.key == "officehome":
        files = find_files(folder, r"\.parquet$")
        paths = {"path": _merge(files, data) if files else str(_index_images(folder, notes))}
    else:
        paths = {"path": _part(folder, "train", data), "test": _part(folder, "test", data)}
    return DataSpec(
        **paths,
        label="label",
        image_size=None,
        validation_fraction=data.validation_fraction,
        test_fraction=data.test_fraction,
        notes=notes,
    )


def _part(folder: Path, part: str, data: PaperSet) -> str:
    files = find_files(folder, NAMES[part])
    if files:
        return _merge(files, data)
    if looks_like_images(folder / part):
        return str(folder / part)
    raise DataError(
        f"{folder}: no {part} images of {data.printed}; expected: {part}*.parquet, or {part}/CLASS/NAME.png"
    )


def _merge(files: Sequence[Path], data: PaperSet) -> str:
    """The file, or its shards merged into one file in the cache."""
    if len(files) == 1:
        return str(files[0])
    content = hashlib.sha256()
    for file in files:
        content.update(hashlib.sha256(file.read_bytes()).digest())
    merged = cache_folder() / "paper" / data.key / f"{content.hexdigest()[:16]}.parquet"
    if not merged.exists():
        merged.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=merged.parent) as scratch:
            file = Path(scratch) / "merged"
            parquet.write_table(concat_tables([parquet.read_table(shard) for shard in files]), file)
            file.rename(merged)
    return str(merged)


def _index_images(folder: Path, notes: list[str]) -> Path:
    """Writes a table of the images DOMAIN/CLASS/NAME beside a link to the folder: its content does not depend on the
    place of the images."""
    root = _folder_of_domains(folder)
    rows, spellings = [], Counter[str]()
    for path in sorted(root.rglob("*")):
        inner = path.relative_to(root)
        if path.suffix.lower() not in SUFFIXES or len(inner.parts) != 3 or inner.parts[0].startswith("."):
            continue
        spellings[inner.parts[1]] += 1
        rows.append({"image": f"images/{inner.as_posix()}", "label": class_of(inner.parts[1])})
    if not rows:
        raise DataError(f"{folder}: no images; expected: DOMAIN/CLASS/NAME.jpg with domains {', '.join(_DOMAINS)}")
    classes = Counter(class_of(name) for name in spellings)
    domains = sorted({row["image"].split("/")[1] for row in rows})
    notes.append(f"{len(rows):,} images of {len(classes)} classes in the domains {', '.join(domains)}, as one set.")
    repeated = sorted(name for name in spellings if classes[class_of(name)] > 1)
    if repeated:
        notes.append(f"Classes with two spellings are merged: {', '.join(repeated[:6])}.")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    digest = hashlib.sha256(f"{root.resolve()}\n{text}".encode()).hexdigest()[:16]
    cached = cache_folder() / "paper" / "officehome" / digest
    write_atomically(cached / "images.jsonl", text)
    link = cached / "images"
    if not link.exists():
        link.unlink(missing_ok=True)  # a link to a folder that no longer exists
        link.symlink_to(root.resolve(), target_is_directory=True)
    return cached / "images.jsonl"


def _folder_of_domains(folder: Path) -> Path:
    """The folder that holds the domains: `folder`, or the only folder in it (archives have one more level)."""
    inside = [child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")]
    if len(inside) == 1 and not any(looks_like_images(child) for child in inside):
        return _folder_of_domains(inside[0])
    return folder


def class_of(name: str) -> str:
    """The class name in its usual spelling: `Alarm_Clock` also for `alarm clock`."""
    words = name.replace("_", " ").split()
    return "_".join(word[:1].upper() + word[1:] for word in words)
