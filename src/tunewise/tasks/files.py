"""Rows of text out of csv, tsv, json lines, parquet and folders of class folders.

Whatever is wrong with a file becomes a `DataError` of one line: file, line in it, fault, way out.
Lines are counted as an editor shows them; a record over several lines is named by its first.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewise.errors import DataError, suggest_nearest
from tunewise.locate import digest, resolve
from tunewise.spec import DataSpec
from tunewise.tasks.decoding import codecs_of, content_of, decoded

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".txt": "txt"}
FOLDER_COLUMNS = ("text", "label")

_LARGEST_FIELD = 2**31 - 1  # csv takes a C long, which has 32 bits on some systems


@dataclass(frozen=True, slots=True)
class Row:
    """One record: the wanted columns as text, and where it stands ('train.csv, line 17')."""

    values: dict[str, str]
    where: str


def read_rows(path: Path, columns: Sequence[str], *, encoding: str = "utf-8") -> list[Row]:
    """The rows of a file, or of a folder of class folders of .txt files, in order; at least one.

    A .txt file has the one column `text`, each line that is not blank a row. A folder has the columns `text` and
    `label` (the name of the class folder) and is read in the order of names. Numbers become text, in JSON as they are
    written; true and false become words. `encoding` is one codec, or several that are tried in turn. Raises `DataError`
    for what can't be read, and `SpecError` for an unknown encoding.
    """
    candidates = codecs_of(encoding)
    files = data_files(path)
    if path.is_dir():
        column_positions(FOLDER_COLUMNS, columns, str(path))
        return [_class_file_row(file, columns, candidates) for file in files]
    kind = format_of(path)
    if kind == "parquet":
        rows = _parquet_rows(path, columns)
    else:
        text = decoded(content_of(path), candidates, path.name)
        if not text.strip():
            raise DataError(f"{path.name}: the file is empty; give one with examples")
        parse = {"csv": _delimited_rows, "tsv": _tsv_rows, "jsonl": _jsonl_rows, "txt": _txt_rows}[kind]
        rows = parse(text, columns, path.name)
    if not rows:
        raise DataError(no_rows(path))
    return rows


def no_rows(path: Path) -> str:
    """The message for a file without rows."""
    return f"{path.name}: the file names its columns and has no rows; give one with examples"


def refuse_blank(row: Row, columns: Iterable[str]) -> None:
    """Raises `DataError` for a cell with nothing but blanks."""
    for column in columns:
        if not row.values[column].strip():
            raise DataError(f"{row.where}: column {column!r} is empty; fill it in or remove the row")


def data_files(path: Path) -> list[Path]:
    """The path itself, or the sorted .txt files of its sorted class folders. Raises `DataError` where there is none."""
    try:
        if path.is_dir():
            return _class_files(path)
        if not path.exists():
            raise DataError(f"{path}: no such file or folder{_neighbours(path)}")
    except OSError as error:  # not allowed to look, a name too long
        raise DataError(f"{path}: {error.strerror}; check the path and its permissions") from None
    return [path]


def part_paths(spec: DataSpec) -> dict[str, str]:
    """The paths that a spec names, by part: train, and validation and test where they have a file."""
    paths = {"train": spec.path, "validation": spec.validation, "test": spec.test}
    return {part: path for part, path in paths.items() if path is not None}


def text_digest(path: Path) -> str:
    """sha256 over a file, or the files of a folder of class folders. Raises `DataError` where there is none."""
    return digest(data_files(path), root=path if path.is_dir() else None)


def digest_by_part(spec: DataSpec, digest_of: Callable[[Path], str] = text_digest) -> str:
    """sha256 (64 hex digits) over the files that `spec` names, with their parts."""
    content = {part: digest_of(resolve(path)) for part, path in part_paths(spec).items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; the folder {str(path.parent)!r} does not exist"
    names = [p.name for p in path.parent.iterdir() if not p.name.startswith(".")]
    return suggest_nearest(path.name, names) if names else f"; the folder {str(path.parent)!r} is empty"


def format_of(path: Path) -> str:
    """`csv`, `tsv`, `jsonl`, `parquet` or `txt`. Raises `DataError` for a name that ends in none of theirs."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    kind = FORMATS.get(suffix)
    if kind is None or (kind == "parquet" and path.suffix.lower() == ".gz"):
        raise DataError(
            f"{path.name}: a file of this type is not read; give {', '.join(FORMATS)} "
            "(each but .parquet also .gz), or a folder of class folders of .txt files"
        )
    return kind


# --- columns and values ---------------------------------------------------------------------------


def column_positions(names: Sequence[str], columns: Sequence[str], file: str) -> dict[str, int]:
    """Where each wanted column stands among `names`. `DataError` for one that is absent or there twice."""
    for column in columns:
        if column not in names:
            raise DataError(f"{file}: no column {column!r}{_column_hint(column, names)}")
        if list(names).count(column) > 1:
            raise DataError(f"{file}: two columns are named {column!r}; rename one")
    return {column: list(names).index(column) for column in columns}


def table_columns(path: Path, encoding: str = "utf-8") -> list[str]:
    """The names of a table's columns; of json lines, the keys of the first object. Raises as `read_rows` does."""
    candidates = codecs_of(encoding)
    data_files(path)
    kind = format_of(path)
    if kind == "parquet":
        with parquet_file(path) as file:
            return list(file.schema_arrow.names)
    if kind == "txt":
        return ["text"]
    text = decoded(content_of(path), candidates, path.name)
    first = next((line for line in text.splitlines() if line.strip()), "")
    if kind == "jsonl":
        return list(_json_object(first, f"{path.name}, line 1"))
    return next(csv.reader([first], delimiter="," if kind == "csv" else "\t"), [])


def _column_hint(column: str, names: Sequence[str]) -> str:
    if len(names) == 1:
        for separator, name in ((";", "';'"), ("\t", "tabs"), ("|", "'|'"), (",", "commas")):
            if separator in names[0]:
                return f"; the fields seem to be separated by {name}: save it with commas, or with tabs as .tsv"
    # A file without a header line has whole texts where names should be.
    return suggest_nearest(column, [n if len(n) <= 40 else n[:37] + "..." for n in names])


def read_objects(
    path: Path, encoding: str = "utf-8", columns: Sequence[str] | None = None
) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows of a json lines or parquet file, lists and objects in them as they are, and where each stands. Raises
    `DataError` as `read_rows` does, and for a file of another kind."""
    data_files(path)
    kind = format_of(path)
    if kind == "parquet":
        yield from _parquet_objects(path, columns)
    elif kind == "jsonl":
        yield from _json_objects(decoded(content_of(path), codecs_of(encoding), path.name), path.name)
    else:
        raise DataError(f"{path.name}: a {kind} file holds no lists; give json lines or parquet")


def _row(cells: Mapping[str, Any], where: str) -> Row:
    return Row({column: as_text(cell, column, where) for column, cell in cells.items()}, where)


def as_text(value: Any, column: str, where: str) -> str:
    """A cell as text. `DataError` for null, NaN, broken Unicode and what is neither text nor a number."""
    if value is None or value != value:  # NaN alone differs from itself
        raise DataError(f"{where}: column {column!r} is null; fill it in or remove the row")
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        kind = type(value).__name__
        raise DataError(f"{where}: column {column!r} holds a {kind}; text or a number is expected")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: column {column!r} has half of a surrogate pair (\\ud800 to \\udfff), which is no "
            "character; remove it"
        ) from None
    return text


# --- csv and tsv ----------------------------------------------------------------------------------


def _tsv_rows(text: str, columns: Sequence[str], file: str) -> list[Row]:
    """Tab-separated rows, with fields that are quoted (spreadsheets, pandas) or raw (most benchmark files).

    Quotes count as such where every field fits and no row runs over several lines that are rows by themselves: in a raw
    file a stray quote would otherwise swallow all lines up to the next quote.
    """
    try:
        raw = _delimited_rows(text, columns, file, "\t", csv.QUOTE_NONE)
    except DataError as fault:
        raw, raw_fault = None, fault
    try:
        quoted = _delimited_rows(text, columns, file, "\t")
    except DataError:
        if raw is None:
            raise raw_fault from None
        return raw
    return quoted if raw is None or len(raw) == len(quoted) else raw


def _delimited_rows(
    text: str, columns: Sequence[str], file: str, delimiter: str = ",", quoting: int = csv.QUOTE_MINIMAL
) -> list[Row]:
    with _fields_of_any_size():
        # newline="" keeps the line ends inside quoted fields as they are.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
        records = _records(reader, file)
        _, header = next(records)
        positions = column_positions(header, columns, file)
        rows = []
        for line, fields in records:
            where = f"{file}, line {line}"
            if len(fields) != len(header):
                raise DataError(_ragged(where, len(fields), len(header), delimiter))
            cells = {column: fields[position] for column, position in positions.items()}
            rows.append(_row(cells, where))
    return rows


def _records(reader: Any, file: str) -> Iterator[tuple[int, list[str]]]:
    """First line and fields of each record; blank lines are passed over."""
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{file}, line {line}: {_quoting_fault(error)}") from None
        if fields:
            yield line, fields


def _quoting_fault(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return 'a quote is opened and never closed; close it, or write a quote inside a field as ""'
    return f'{error}; write a quote inside a quoted field as ""'


def _ragged(where: str, count: int, expected: int, delimiter: str) -> str:
    separator = "comma" if delimiter == "," else "tab"
    fix = f"put quotes around a field that holds a {separator}" if count > expected else "add what is missing"
    fields = "1 field" if count == 1 else f"{count} fields"
    return f"{where}: {fields} where the header has {expected}; {fix}, or remove the line"


@contextmanager
def _fields_of_any_size() -> Iterator[None]:
    before = csv.field_size_limit(_LARGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _txt_rows(text: str, columns: Sequence[str], file: str) -> list[Row]:
    column_positions(["text"], columns, file)
    lines = enumerate(text.splitlines(), start=1)
    return [Row({"text": line}, f"{file}, line {number}") for number, line in lines if line.strip()]


# --- json lines -----------------------------------------------------------------------------------


def _jsonl_rows(text: str, columns: Sequence[str], file: str) -> list[Row]:
    rows = []
    for record, where in _json_objects(text, file):
        column_positions(list(record), columns, where)
        rows.append(_row({column: record[column] for column in columns}, where))
    return rows


def _json_objects(text: str, file: str) -> Iterator[tuple[dict[str, Any], str]]:
    for line, record in enumerate(io.StringIO(text, newline=""), start=1):
        if record.strip():
            yield _json_object(record, f"{file}, line {line}"), f"{file}, line {line}"


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        # Numbers stay as written: 1.0 is not made 1, and no number is too long to be read.
        record = json.loads(text, parse_int=str, parse_float=str, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not valid JSON ({error.msg}, column {error.colno}); write one object on each line"
        ) from None
    except RecursionError:
        raise DataError(f"{where}: the JSON is nested too deeply; write one flat object on each line") from None
    if not isinstance(record, dict):
        raise DataError(f'{where}: not a JSON object; write one on each line: {{"text": ..., "label": ...}}')
    return record


# --- parquet --------------------------------------------------------------------------------------


def _parquet_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    return [_row(cells, where) for cells, where in _parquet_objects(path, columns)]


def _parquet_objects(path: Path, columns: Sequence[str] | None) -> Iterator[tuple[dict[str, Any], str]]:
    """Parquet has no lines: rows are counted from 1."""
    with parquet_file(path) as file:
        column_positions(file.schema_arrow.names, columns or (), path.name)
        number = 0
        for batch in file.iter_batches(256, columns=columns and list(columns)):
            for row in batch.to_pylist():
                number += 1
                yield row, f"{path.name}, row {number}"


@contextmanager
def parquet_file(path: Path) -> Iterator[Any]:
    """An open `pyarrow.parquet.ParquetFile`; errors of pyarrow become a `DataError`."""
    import pyarrow  # here, because it takes longer to import than all the rest
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        fault = str(error).partition("\n")[0]
        raise DataError(f"{path.name}: not readable as parquet ({fault}); write or fetch it again") from None


# --- folders of class folders ---------------------------------------------------------------------


def _class_files(folder: Path) -> list[Path]:
    classes = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    files = [file for child in classes for file in sorted(child.iterdir()) if _is_text_file(file)]
    if not files:
        readable = sorted(file.name for file in folder.iterdir() if file.suffix in (*FORMATS, ".gz"))
        hint = f"name one of its files: {', '.join(readable[:5])}" if readable else "expected: LABEL/NAME.txt"
        raise DataError(f"{folder}: the folder has no class folders with .txt files; {hint}")
    return files


def _is_text_file(file: Path) -> bool:
    return file.suffix.lower() == ".txt" and not file.name.startswith(".") and file.is_file()


def _class_file_row(file: Path, columns: Sequence[str], candidates: Sequence[str]) -> Row:
    label = file.parent.name
    where = f"{label}/{file.name}"
    values = {"text": decoded(content_of(file), candidates, where), "label": label}
    return Row({column: values[column] for column in columns}, where)
