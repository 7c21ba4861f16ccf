"""The files of a data set as its makers or a hub publish them, read into items.

Nothing of any one set is known here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewise.errors import DataError
from tunewise.tasks.decoding import content_of, decoded
from tunewise.tasks.files import as_text, parquet_file, read_objects, read_rows, table_columns

_TABLES = r"([-_./].*)?\.(csv|tsv|jsonl|parquet)(\.gz)?$"
NAMES = {
    "train": r"(^|[/_.-])train(set)?" + _TABLES,
    "validation": r"(^|[/_.-])(validation|valid|val|dev)(set)?" + _TABLES,
    "test": r"(^|[/_.-])test(set)?" + _TABLES,
}
"""How files of the three parts are usually called, or the folders that they lie in."""


@dataclass(frozen=True, slots=True)
class Item:
    """One example. `label` is None where it was never published; `where` names its file and line.

    `same` is equal for examples that are one although their texts differ: a question with its answers in another order.
    """

    text: str
    pair: str | None
    label: str | None
    where: str
    same: str = ""


@dataclass(slots=True)
class Parts:
    """The items of train, validation and test, as far as there are files of them, and what was done to them."""

    items: dict[str, list[Item]]
    notes: list[str] = field(default_factory=list)


Read = Callable[[Path], Iterator[Item]]
Form = Callable[[Path], Parts | None]
"""Reads a folder in one of a set's public forms; None where the files are not of this form."""


def by_name(read: Read, **patterns: str) -> Form:
    """The form whose files have these names (regular expressions on paths below the folder; the usual names unless
    given). Several files of a part follow one another, in the order of their names."""

    def load(folder: Path) -> Parts | None:
        files = {part: find(folder, patterns.get(part, usual)) for part, usual in NAMES.items()}
        if not files["train"]:
            return None
        return Parts({part: [i for one in found for i in read(one)] for part, found in files.items() if found})

    return load


def find(folder: Path, pattern: str) -> list[Path]:
    """Files below `folder` whose path there, in small letters, the expression is found in; sorted, hidden ones not."""
    wanted = re.compile(pattern)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    named = [(path, path.relative_to(folder).as_posix()) for path in paths]
    return [path for path, name in named if wanted.search(name.lower()) and not re.search(r"(^|/)\.", name)]


def columns(text: Sequence[str], label: Sequence[str], pair: Sequence[str] = ()) -> Read:
    """Reads tables by the names that columns have in one copy or another; the first one that is there is taken."""

    def read(path: Path) -> Iterator[Item]:
        for row, where in table(path):
            yield Item(
                said(row, text, where), said(row, pair, where) if pair else None, label_of(row, label, where), where
            )

    return read


def table(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Rows by column names, and where they stand: csv (quoted), tsv and txt (raw, as benchmarks have them), json
    lines, parquet."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".parquet", ".jsonl")):
        yield from read_objects(path)
    elif name.endswith(".csv"):
        for row in read_rows(path, table_columns(path)):
            yield dict(row.values), row.where
    else:
        rows = fields(path)
        header, _ = next(rows, ([], ""))
        for cells, where in rows:
            if len(cells) != len(header):
                raise DataError(f"{where}: {len(cells)} fields where the header has {len(header)}; mend the line")
            yield dict(zip(header, cells, strict=True)), where


def fields(path: Path, encoding: str = "utf-8") -> Iterator[tuple[list[str], str]]:
    """The fields of a file parted by tabs, in which quotes mean nothing, and where they stand."""
    for line, where in lines(path, encoding):
        yield line.split("\t"), where


def lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[str, str]]:
    """The lines that are not blank, without their ends, and where they stand."""
    text = decoded(content_of(path), [encoding], path.name)
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield line.rstrip("\r"), f"{path.name}, line {number}"


def said(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    """The text of the first of these columns that the row has. Raises `DataError` where it has none of them."""
    for name in names:
        if name in row:
            return as_text(row[name], name, where)
    raise DataError(f"{where}: none of the columns {', '.join(names)}; it has {', '.join(map(str, row))}")


def label_of(row: Mapping[str, Any], names: Sequence[str], where: str) -> str | None:
    """The label; None where no column has it, it is empty, or it is -1: hubs write that for labels never published."""
    name = next((name for name in names if name in row), None)
    if name is None or row[name] is None:
        return None
    label = as_text(row[name], name, where).strip()
    return None if label in ("", "-1", "-1.0") else label


def class_names(path: Path, column: str) -> list[str]:
    """The names of the classes that Hugging Face's `datasets` writes into a parquet file's metadata; else none."""
    with parquet_file(path) as file:
        metadata = file.schema_arrow.metadata or {}
    try:
        names = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return []
    return [str(name) for name in names]
