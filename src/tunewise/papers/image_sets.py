"""OfficeHome and CIFAR-10 from folders of images or parquet files; nothing is decoded here."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunewise.errors import DataError
from tunewise.locate import cache_folder
from tunewise.papers.reading import NAMES, find
from tunewise.spec import DataSpec
from tunewise.store.files import write_atomically
from tunewise.tasks.image_files import SUFFIXES, looks_like_images

if TYPE_CHECKING:
    from tunewise.papers.sets import PaperSet

_DOMAINS = ("Art", "Clipart", "Product", "Real World")


def spec_of(known: PaperSet, folder: Path, origin: str) -> DataSpec:
    """The images of a set. OfficeHome has no parts: all domains are one set, split 70 : 15 : 15. CIFAR-10 has a test
    part; 5 % of train are for validation. Raises `DataError` where the folder has no images of a known form."""
    notes = [origin]
    if known.key == "officehome":
        files = find(folder, r"\.parquet$")
        paths = {"path": _one_file(files, known) if files else str(_table_of(folder, notes))}
    else:
        paths = {"path": _part(folder, "train", known), "test": _part(folder, "test", known)}
    return DataSpec(
        **paths,
        label="label",
        image_size=None,
        validation_fraction=known.validation_fraction,
        test_fraction=known.test_fraction,
        notes=notes,
    )


def _part(folder: Path, part: str, known: PaperSet) -> str:
    files = find(folder, NAMES[part])
    if files:
        return _one_file(files, known)
    if looks_like_images(folder / part):
        return str(folder / part)
    raise DataError(
        f"{folder}: no {part} images of {known.printed}; expected: {part}*.parquet, or {part}/CLASS/NAME.png"
    )


def _one_file(files: Sequence[Path], known: PaperSet) -> str:
    """The file, or its shards put together in the cache."""
    if len(files) == 1:
        return str(files[0])
    from pyarrow import concat_tables, parquet

    content = hashlib.sha256()
    for file in files:
        content.update(hashlib.sha256(file.read_bytes()).digest())
    whole = cache_folder() / "paper" / known.key / f"{content.hexdigest()[:16]}.parquet"
    if not whole.exists():
        whole.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=whole.parent) as scratch:
            parquet.write_table(concat_tables([parquet.read_table(file) for file in files]), Path(scratch) / "whole")
            (Path(scratch) / "whole").rename(whole)
    return str(whole)


def _table_of(folder: Path, notes: list[str]) -> Path:
    """A table of the images in DOMAIN/CLASS/NAME, beside a link to the folder: so paths in it do not depend on where
    the images lie."""
    root = _with_domains(folder)
    images = [path for path in sorted(root.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    rows, spellings = [], Counter[str]()
    for path in images:
        inner = path.relative_to(root)
        if len(inner.parts) != 3 or inner.parts[0].startswith("."):
            continue
        label = class_of(inner.parts[1])
        spellings[inner.parts[1]] += 1
        rows.append({"image": f"images/{inner.as_posix()}", "label": label})
    if not rows:
        raise DataError(f"{folder}: no images; expected: DOMAIN/CLASS/NAME.jpg with domains {', '.join(_DOMAINS)}")
    classes = {row["label"] for row in rows}
    domains = sorted({row["image"].split("/")[1] for row in rows})
    notes.append(f"{len(rows):,} images of {len(classes)} classes in the domains {', '.join(domains)}, as one set.")
    if len(spellings) > len(classes):
        twice = sorted(name for name in spellings if sum(class_of(other) == class_of(name) for other in spellings) > 1)
        notes.append(f"Classes spelled in two ways are one: {', '.join(twice[:6])}.")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    place = hashlib.sha256(f"{root.resolve()}\n{text}".encode()).hexdigest()[:16]
    here = cache_folder() / "paper" / "officehome" / place
    write_atomically(here / "images.jsonl", text)
    link = here / "images"
    if not link.exists():
        link.unlink(missing_ok=True)  # one that points to where nothing is any more
        link.symlink_to(root.resolve(), target_is_directory=True)
    return here / "images.jsonl"


def _with_domains(folder: Path) -> Path:
    """The folder that holds the domains: given itself, or the one folder in it (archives have one more level)."""
    inside = [child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")]
    if len(inside) == 1 and not any(looks_like_images(child) for child in inside):
        return _with_domains(inside[0])
    return folder


def class_of(name: str) -> str:
    """The class's name as it is usually spelled: `Alarm_Clock` for `alarm clock` too."""
    words = name.replace("_", " ").split()
    return "_".join(word[:1].upper() + word[1:] for word in words)
