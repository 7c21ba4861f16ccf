"""Reads the public files of data sets, from their authors or a hub, into items. Nothing here is about one data set."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewise.errors import DataError
from tunewise.tasks.decoding import read_text
from tunewise.tasks.files import as_text, read_records

_TABLES = r"([-_./].*)?\.(csv|tsv|jsonl|parquet)(\.gz)?$"
NAMES = {
    "train": r"(^|[/_.-])train(set)?" + _TABLES,
    "validation": r"(^|[/_.-])(validation|valid|val|dev)(set)?" + _TABLES,
    "test": r"(^|[/_.-])test(set)?" + _TABLES,
}
"""Usual names of the files of a part, or of their folders."""


@dataclass(frozen=True, slots=True)
class TextItem:
    """One example. `label` is None where it is not public; `where` names file and line.

    `same` is equal for items that differ only in form: a question with its answers in another order.
    """

    text: str
    pair: str | None
    label: str | None
    where: str
    same: str = ""


@dataclass(slots=True)
class DataParts:
    """The items of train, validation and test where they have files, and notes about changes."""

    items: dict[str, list[TextItem]]
    notes: list[str] = field(default_factory=list)


ReadItems = Callable[[Path], Iterator[TextItem]]
ReadParts = Callable[[Path], DataParts | None]
"""Reads a folder; None where its files have another form."""


def parts_by_name(read: ReadItems, **patterns: str) -> ReadParts:
    """Reads the parts from files with these names (regular expressions; the default is `NAMES`), in sorted order."""

    def load(folder: Path) -> DataParts | None:
        files = {part: find_files(folder, patterns.get(part, usual)) for part, usual in NAMES.items()}
        if not files["train"]:
            return None
        return DataParts({part: [i for path in paths for i in read(path)] for part, paths in files.items() if paths})

    return load


def find_files(folder: Path, pattern: str) -> list[Path]:
    """Files below `folder` with a match in their lower-case relative path; sorted, without hidden ones."""
    wanted = re.compile(pattern)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    named = [(path, path.relative_to(folder).as_posix()) for path in paths]
    return [path for path, name in named if wanted.search(name.lower()) and not re.search(r"(^|/)\.", name)]


def items_by_column(text: Sequence[str], label: Sequence[str], pair: Sequence[str] = ()) -> ReadItems:
    """Reads tables; each argument has the possible names of a column, and the first that exists is used."""

    def read(path: Path) -> Iterator[TextItem]:
        for row, where in read_table(path):
            second = text_of(row, pair, where) if pair else None
            yield TextItem(text_of(row, text, where), second, label_of(row, label, where), where)

    return read


def read_table(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Rows by column names, and their positions: csv (quoted), tsv and txt (unquoted), json lines, parquet."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".parquet", ".jsonl", ".csv")):
        yield from read_records(path)
    else:
        rows = read_fields(path)
        header, _ = next(rows, ([], ""))
        for cells, where in rows:
            if len(cells) != len(header):
                raise DataError(f"{where}: {len(cells)} fields where the header has {len(header)}; fix the line")
            yield dict(zip(header, cells, strict=True)), where


def read_fields(path: Path, encoding: str = "utf-8") -> Iterator[tuple[list[str], str]]:
    """The tab-separated fields of each line, without quoting, and its position."""
    for line, where in read_lines(path, encoding):
        yield line.split("\t"), where


def read_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[str, str]]:
    """The lines that are not blank, without line ends, and their positions."""
    for number, line in enumerate(read_text(path, encoding).split("\n"), start=1):
        if line.strip():
            yield line.rstrip("\r"), f"{path.name}, line {number}"


def text_of(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    """The text of the first of these columns in the row. Raises `DataError` without any of them."""
    for name in names:
        if name in row:
            return as_text(row[name], name, where)
    raise DataError(f"{where}: none of the columns {', '.join(names)}; it has {', '.join(map(str, row))}")


def label_of(row: Mapping[str, Any], names: Sequence[str], where: str) -> str | None:
    """The label; None without a column, for an empty cell, and for -1 (hubs write it where a label is not public)."""
    name = next((name for name in names if name in row), None)
    if name is None or row[name] is None:
        return None
    label = as_text(row[name], name, where).strip()
    return None if label in ("", "-1", "-1.0") else label
