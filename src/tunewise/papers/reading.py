"""Files of data sets as rows, and cells of rows as texts. Nothing here is about one data set."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tunewise.errors import DataError
from tunewise.papers.sets import Form
from tunewise.tasks.decoding import read_text
from tunewise.tasks.files import as_text, class_names, read_records

Cells = Mapping[str, object]
Rows = Iterator[tuple[Cells, str]]
"""Cells by column, and the position of a row: file and line."""


def part_files(form: Form, folder: Path) -> dict[str, list[Path]]:
    """The files of each part that has any."""
    files = {part: find_files(folder, pattern) for part, pattern in form.files.items()}
    return {part: paths for part, paths in files.items() if paths}


def find_files(folder: Path, pattern: str) -> list[Path]:
    """Files below `folder` with a lower-case relative path that ends as `pattern`, or with .gz; sorted, none hidden."""
    wanted = re.compile(rf"(?:{pattern})(\.gz)?$")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    named = [(path, path.relative_to(folder).as_posix()) for path in paths]
    return [path for path, name in named if wanted.search(name.lower()) and not re.search(r"(^|/)\.", name)]


def read_rows(path: Path, form: Form) -> Rows:
    """The rows of a file."""
    if form.rows != "table":
        for line, where in read_lines(path, form):
            cells = line.split("\t") if form.rows == "fields" else line.split(" ", 1)
            yield {str(number): cell for number, cell in enumerate(cells)}, where
    elif form.class_names and path.suffix == ".parquet":
        column = form.label.split("|")[0]
        names = class_names(path, column)
        for row, where in read_table(path):
            yield {**row, column: names[int(text_of(row, column, where))] if names else row[column]}, where
    else:
        yield from read_table(path)


def read_table(path: Path) -> Rows:
    """Rows by column names: csv (quoted), tsv and txt (unquoted), json lines, parquet."""
    if path.name.lower().removesuffix(".gz").endswith((".parquet", ".jsonl", ".csv")):
        yield from read_records(path)
        return
    lines = read_lines(path)
    header = next(lines, ("", ""))[0].split("\t")
    for line, where in lines:
        cells = line.split("\t")
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} fields where the header has {len(header)}; fix the line")
        yield dict(zip(header, cells, strict=True)), where


def read_lines(path: Path, form: Form | None = None) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, without line ends, and their positions."""
    form = form or Form()
    for number, line in enumerate(read_text(path, form.encoding).split("\n"), start=1):
        if line.strip():
            for old, new in form.replace.items():
                line = line.replace(old, new)
            yield line.rstrip("\r"), f"{path.name}, line {number}"


def text_of(row: Cells, columns: str, where: str) -> str:
    """The text of the first of these columns, a list's items on a line each. Raises `DataError` without any of them."""
    for name in columns.split("|"):
        if name in row:
            cell = row[name]
            return (
                "\n".join(str(item).strip() for item in cell) if isinstance(cell, list) else as_text(cell, name, where)
            )
    raise DataError(f"{where}: none of the columns {columns.replace('|', ', ')}; it has {', '.join(row)}")


def label_of(row: Cells, columns: str, where: str) -> str | None:
    """The label; None without a column, for an empty cell, and for -1 (hubs write it where a label is not public)."""
    name = next((name for name in columns.split("|") if name in row), None)
    if name is None or row[name] is None:
        return None
    label = as_text(row[name], name, where).strip()
    return None if label in ("", "-1", "-1.0") else label
