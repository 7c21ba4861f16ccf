"""Records out of csv, tsv, JSON, parquet, txt and folders of class folders.

Whatever is wrong with a file becomes a `DataError` of one line: file, line in it, fault, way out.
Lines are counted as an editor shows them; a record over several lines is named by its first.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunewise.errors import DataError, suggest_nearest
from tunewise.locate import digest, resolve
from tunewise.spec import DataSpec
from tunewise.tasks.decoding import lines_of, read_text
from tunewise.text_format import is_unicode

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".txt": "txt",
}
TEXT_FILES = (".txt",)
"""Endings of the names in class folders of texts."""

_LARGEST_FIELD = 2**31 - 1  # csv takes a C long, which has 32 bits on some systems

Cells = dict[str, object]
Records = Iterable[tuple[Cells, str]]
"""Cells by column, as they are in the file, and where they stand ('train.csv, line 17')."""


@dataclass(frozen=True, slots=True)
class Row:
    """The wanted columns of a record as text, and where it stands."""

    values: dict[str, str]
    where: str


def read_rows(path: Path, columns: Sequence[str], *, encoding: str = "utf-8", flat: bool = False) -> list[Row]:
    """The records of a file or folder with these columns as text; at least one.

    Numbers become text, in JSON as they are written; true and false become words.
    """
    return [
        Row({column: as_text(cells[column], column, where) for column in columns}, where)
        for cells, where in read_records(path, columns, encoding=encoding, flat=flat)
    ]


def read_records(
    path: Path, columns: Sequence[str] = (), *, encoding: str = "utf-8", flat: bool = False
) -> Iterator[tuple[Cells, str]]:
    """The records of a file, or of a folder of class folders of .txt files, in order; at least one.

    Each has all `columns`. A .txt file has the one column `text`, each line that is not blank a record. A folder has
    the columns `text` and `label` (the name of the class folder) and is read in the order of names. `encoding` is one
    codec, or several that are tried in turn. `flat` takes the files of the folder itself, too. Raises `DataError` for
    what can't be read, and `SpecError` for an unknown encoding.
    """
    records = iter(_records(path, columns, encoding, flat))
    first = next(records, None)
    if first is None:
        raise DataError(f"{path.name}: the file names its columns and has no rows; give one with examples")
    yield first
    yield from records


def _records(path: Path, columns: Sequence[str], encoding: str, flat: bool) -> Records:
    files = data_files(path, flat=flat)
    if path.is_dir():
        return _folder_records(path, files, columns, encoding)
    kind = format_of(path)
    if kind == "parquet":
        return _parquet_records(path, columns)
    text = read_text(path, encoding)
    if not text.strip():
        raise DataError(f"{path.name}: the file is empty; give one with examples")
    parse = {"csv": _csv_records, "tsv": _tsv_records, "json": _json_records, "txt": _txt_records}[kind]
    return parse(text, columns, path.name)


def refuse_blank(row: Row, columns: Iterable[str]) -> None:
    """Raises `DataError` for a cell with nothing but blanks."""
    for column in columns:
        if not row.values[column].strip():
            raise DataError(f"{row.where}: column {column!r} is empty; fill it in or remove the row")


def as_text(value: object, column: str, where: str) -> str:
    """A cell as text. `DataError` for null, NaN, broken Unicode and what is neither text nor a number."""
    if value is None or value != value:  # NaN alone differs from itself
        raise DataError(f"{where}: column {column!r} is null; fill it in or remove the row")
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        kind = type(value).__name__
        raise DataError(f"{where}: column {column!r} holds a {kind}; text or a number is expected")
    text = str(value)
    if not is_unicode(text):
        raise DataError(
            f"{where}: column {column!r} has half of a surrogate pair (\\ud800 to \\udfff), which is no "
            "character; remove it"
        )
    return text


# --- paths ----------------------------------------------------------------------------------------


def data_files(path: Path, endings: Sequence[str] = TEXT_FILES, *, flat: bool = False) -> list[Path]:
    """The path itself, or the sorted files of its sorted class folders, after those of the folder itself where `flat`
    (data without labels). Raises `DataError` where there is none."""
    try:
        if path.is_dir():
            return _class_files(path, endings, flat)
        if not path.exists():
            raise DataError(f"{path}: no such file or folder{_neighbours(path)}")
    except OSError as error:  # not allowed to look, a name too long
        raise DataError(f"{path}: {error.strerror}; check the path and its permissions") from None
    return [path]


def files_of_folder(folder: Path, endings: Sequence[str]) -> list[Path]:
    """The files of the folder itself with names of these endings, sorted, without hidden ones."""
    files = (file for file in folder.iterdir() if file.suffix.lower() in endings and not file.name.startswith("."))
    return sorted(file for file in files if file.is_file())


def _class_files(folder: Path, endings: Sequence[str], flat: bool) -> list[Path]:
    classes = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    folders = [folder, *classes] if flat else classes
    files = [file for child in folders for file in files_of_folder(child, endings)]
    for file in files:
        if not is_unicode(f"{file.parent.name}/{file.name}"):
            raise DataError(f"{folder}: the name {f'{file.parent.name}/{file.name}'!r} is not UTF-8; rename it")
    if not files:
        raise DataError(f"{folder}: no class folders with files; {_folder_hint(folder, classes, endings)}")
    return files


def _folder_hint(folder: Path, classes: Sequence[Path], endings: Sequence[str]) -> str:
    splits = [c for c in classes if any(files_of_folder(d, endings) for d in c.iterdir() if d.is_dir())]
    if splits:
        names = ", ".join(str(child) for child in splits[:3])
        return f"name the folders of the splits one by one, as --data and --test: {names}"
    tables = files_of_folder(folder, (*FORMATS, ".gz"))
    if tables:
        return f"name one of its files: {', '.join(file.name for file in tables[:5])}"
    return f"expected: LABEL/NAME with NAME ending in {', '.join(endings)}"


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; the folder {str(path.parent)!r} does not exist"
    names = [p.name for p in path.parent.iterdir() if not p.name.startswith(".")]
    return suggest_nearest(path.name, names) if names else f"; the folder {str(path.parent)!r} is empty"


def format_of(path: Path) -> str:
    """`csv`, `tsv`, `json`, `parquet` or `txt`. Raises `DataError` for a name that ends in none of theirs."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    kind = FORMATS.get(suffix)
    if kind is None or (kind == "parquet" and path.suffix.lower() == ".gz"):
        raise DataError(
            f"{path.name}: a file of this type is not read; give {', '.join(FORMATS)} "
            "(each but .parquet also .gz), or a folder of class folders of .txt files"
        )
    return kind


def part_paths(spec: DataSpec) -> dict[str, str]:
    """The paths that a spec names, by part: train, and validation and test where they have a file."""
    paths = {"train": spec.path, "validation": spec.validation, "test": spec.test}
    return {part: path for part, path in paths.items() if path is not None}


def digest_by_part(spec: DataSpec, endings: Sequence[str] = TEXT_FILES) -> str:
    """sha256 (64 hex digits) over the files that `spec` names, with their parts. Raises `DataError`."""
    paths = {part: resolve(path) for part, path in part_paths(spec).items()}
    content = {part: digest(data_files(p, endings), root=p if p.is_dir() else None) for part, p in paths.items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# --- columns --------------------------------------------------------------------------------------


def check_names(names: Sequence[str], columns: Sequence[str], where: str) -> None:
    """Raises `DataError` for a wanted column that is absent from `names` or there twice."""
    for column in columns:
        if column not in names:
            raise DataError(f"{where}: no column {column!r}{_column_hint(column, names)}")
        if list(names).count(column) > 1:
            raise DataError(f"{where}: two columns are named {column!r}; rename one")


def _column_hint(column: str, names: Sequence[str]) -> str:
    if len(names) == 1:
        for separator, name in ((";", "';'"), ("\t", "tabs"), ("|", "'|'"), (",", "commas")):
            if separator in names[0]:
                return f"; the fields seem to be separated by {name}: save it with commas, or with tabs as .tsv"
    # A file without a header line has whole texts where names should be.
    return suggest_nearest(column, [n if len(n) <= 40 else n[:37] + "..." for n in names])


# --- one function for each format -----------------------------------------------------------------


def _folder_records(folder: Path, files: Sequence[Path], columns: Sequence[str], encoding: str) -> Records:
    check_names(("text", "label"), columns, str(folder))
    for file in files:
        where = f"{file.parent.name}/{file.name}"
        yield {"text": read_text(file, encoding, where), "label": file.parent.name}, where


def _txt_records(text: str, columns: Sequence[str], file: str) -> Records:
    check_names(["text"], columns, file)
    for number, line in enumerate(lines_of(text), start=1):
        if line.strip():
            yield {"text": line.rstrip("\r\n")}, f"{file}, line {number}"


def _tsv_records(text: str, columns: Sequence[str], file: str) -> Records:
    """Tab-separated rows, with fields that are quoted (spreadsheets, pandas) or raw (most benchmark files).

    Quotes count as such where every field fits and no row runs over several lines that are rows by themselves: in a raw
    file a stray quote would otherwise swallow all lines up to the next quote.
    """
    readings = []
    for quoted in (False, True):
        with suppress(DataError):
            readings.append(_csv_records(text, columns, file, "\t", quoted=quoted))
    if not readings:
        return _csv_records(text, columns, file, "\t", quoted=False)  # raises again
    return readings[-1] if len(readings[0]) == len(readings[-1]) else readings[0]


def _csv_records(
    text: str, columns: Sequence[str], file: str, delimiter: str = ",", *, quoted: bool = True
) -> list[tuple[Cells, str]]:
    (_, header), *lines = _csv_lines(text, file, delimiter, quoted)
    check_names(header, columns, file)
    records: list[tuple[Cells, str]] = []
    for line, fields in lines:
        where = f"{file}, line {line}"
        if len(fields) != len(header):
            raise DataError(_ragged(where, len(fields), len(header), delimiter))
        records.append((dict(zip(header, fields, strict=True)), where))
    return records


def _csv_lines(text: str, file: str, delimiter: str, quoted: bool) -> list[tuple[int, list[str]]]:
    """First line and fields of each record; blank lines are passed over."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    limit = csv.field_size_limit(_LARGEST_FIELD)
    # newline="" keeps the line ends inside quoted fields as they are.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    lines, line = [], 1
    try:
        for fields in reader:
            if fields:
                lines.append((line, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        fault = f'{error}; write a quote inside a quoted field as ""'
        if "unexpected end of data" in str(error):
            fault = 'a quote is opened and never closed; close it, or write a quote inside a field as ""'
        raise DataError(f"{file}, line {line}: {fault}") from None
    finally:
        csv.field_size_limit(limit)
    return lines


def _ragged(where: str, count: int, expected: int, delimiter: str) -> str:
    separator = "comma" if delimiter == "," else "tab"
    fix = f"put quotes around a field that holds a {separator}" if count > expected else "add what is missing"
    fields = "1 field" if count == 1 else f"{count} fields"
    return f"{where}: {fields} where the header has {expected}; {fix}, or remove the line"


def _json_records(text: str, columns: Sequence[str], file: str) -> Records:
    """One object on each line, or one list of objects."""
    for record, where in _json_values(text, file):
        if not isinstance(record, dict):
            raise DataError(f'{where}: not a JSON object; write one on each line: {{"text": ..., "label": ...}}')
        check_names(list(record), columns, where)
        yield record, where


def _json_values(text: str, file: str) -> Iterator[tuple[object, str]]:
    if text.lstrip().startswith("["):
        values = _parse_json(text, file, 1)
        assert isinstance(values, list)
        for number, value in enumerate(values, start=1):
            where = f"{file}, row {number}"
            yield _without_repeated_keys(value, where), where
        return
    for line, content in enumerate(lines_of(text), start=1):
        if content.strip():
            where = f"{file}, line {line}"
            yield _without_repeated_keys(_parse_json(content.rstrip(), file, line), where), where


class _RepeatedKey(str):
    """Stands for an object in which this key occurs twice: JSON leaves open which value counts."""


def _object_of(pairs: list[tuple[str, object]]) -> dict[str, object] | _RepeatedKey:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            return _RepeatedKey(key)
        found[key] = value
    return found


def _without_repeated_keys(value: object, where: str) -> object:
    """The value. Raises `DataError` where an object in it has a key twice."""
    if isinstance(value, _RepeatedKey):
        raise DataError(f"{where}: the key {str(value)!r} occurs twice in one object; keep one of the two")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _without_repeated_keys(part, where)
    return value


def _parse_json(text: str, file: str, line: int) -> object:
    """The value of a text that starts on a line of the file."""
    try:
        # Numbers stay as written: 1.0 is not made 1, and no number is too long to be read.
        return json.loads(
            text,
            parse_int=str,
            parse_float=str,
            parse_constant=lambda _: None,
            object_pairs_hook=_object_of,
        )
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}, line {line + error.lineno - 1}: not valid JSON ({error.msg}, column {error.colno}); write one "
            "object on each line, or one list of objects"
        ) from None
    except RecursionError:
        raise DataError(
            f"{file}, line {line}: the JSON is nested too deeply; write one flat object on each line"
        ) from None


def _parquet_records(path: Path, columns: Sequence[str]) -> Records:
    """Parquet has no lines: rows are counted from 1."""
    with parquet_file(path) as file:
        check_names(file.schema_arrow.names, columns, path.name)
        number = 0
        for batch in file.iter_batches(256, columns=list(columns) or None):
            for row in batch.to_pylist():
                number += 1
                yield row, f"{path.name}, row {number}"


@contextmanager
def parquet_file(path: Path) -> Iterator[ParquetFile]:
    """The opened file; errors of pyarrow become a `DataError`."""
    import pyarrow  # here, because it takes longer to import than all the rest
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        fault = str(error).partition("\n")[0]
        raise DataError(f"{path.name}: not readable as parquet ({fault}); write or fetch it again") from None


def class_names(path: Path, label: str) -> list[str]:
    """The classes that Hugging Face's `datasets` writes into a parquet file's metadata; empty where it names none."""
    with parquet_file(path) as file:
        metadata = file.schema_arrow.metadata or {}
    try:
        names = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return []
    return [str(name) for name in names]
