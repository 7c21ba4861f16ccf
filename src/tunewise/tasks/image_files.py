"""Labelled images from a folder of class folders, a parquet file of images, or a table of paths; nothing is decoded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewise.errors import DataError, SpecError, suggest_nearest
from tunewise.locate import digest
from tunewise.tasks.files import (
    as_text,
    column_positions,
    data_files,
    format_of,
    no_rows,
    parquet_file,
    read_objects,
    read_rows,
    refuse_blank,
    table_columns,
)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_NAMES = ("image", "img")  # of a column that holds images
_PATH_NAMES = (*_NAMES, "file_name", "path", "file")  # of one that holds paths to them


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image: its file or its encoded bytes, its label as text, and its place ('train.parquet, row 17')."""

    source: Path | bytes
    label: str
    where: str

    def content(self) -> bytes:
        """The encoded bytes. Raises `DataError` where the file can't be read."""
        if isinstance(self.source, bytes):
            return self.source
        try:
            return self.source.read_bytes()
        except OSError as error:
            raise DataError(
                f"{self.where}: {self.source}: {error.strerror}; correct the path, or remove the row"
            ) from None


def read_images(path: Path, image: str | None, label: str, *, encoding: str = "utf-8") -> list[ImageRow]:
    """The rows of a folder of class folders (sorted by name), a parquet file or a table of paths; at least one.

    `image` is the column of images (parquet: bytes, or Hugging Face's struct of bytes and path) or of paths (csv,
    tsv, jsonl; relative to the table); detected by its name where None. Raises `DataError` for what can't be read, and
    `SpecError` for a column of a folder.
    """
    if path.is_dir():
        if image is not None:
            raise SpecError(f"{path} is a folder of class folders, which has no column {image!r}; leave --image out")
        return [ImageRow(file, file.parent.name, f"{file.parent.name}/{file.name}") for file in folder_images(path)]
    data_files(path)  # raises where there is no such file
    if format_of(path) == "parquet":
        return _parquet_images(path, image, label)
    image = image or _by_name(table_columns(path, encoding), _PATH_NAMES, path)
    rows = read_rows(path, [image, label], encoding=encoding)
    for row in rows:
        refuse_blank(row, [image, label])
    return [ImageRow(path.parent / row.values[image].strip(), row.values[label].strip(), row.where) for row in rows]


def folder_images(folder: Path) -> list[Path]:
    """The images of the class folders of `folder`, sorted. Raises `DataError` where there are none."""
    classes = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    files = [file for child in classes for file in sorted(child.iterdir()) if _is_image(file)]
    if not files:
        raise DataError(f"{folder}: the folder has no class folders with images; {_folder_hint(folder, classes)}")
    return files


def _folder_hint(folder: Path, classes: Sequence[Path]) -> str:
    deeper = [child.name for child in classes if any(holds_images(inner) for inner in child.iterdir())]
    if deeper:
        names = ", ".join(f"{folder / name}" for name in deeper[:3])
        return f"name the folders of the splits one by one, as --data and --test: {names}"
    if holds_images(folder):
        return "its images lie side by side: put each into a folder named by its class, or give a table of paths"
    return f"expected: LABEL/NAME with NAME ending in {', '.join(SUFFIXES)}"


def holds_images(folder: Path) -> bool:
    """Whether images lie in the folder itself."""
    return folder.is_dir() and any(_is_image(file) for file in folder.iterdir())


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def looks_like_images(path: Path) -> bool:
    """Whether the layout shows images: class folders with images in them, a parquet column of images."""
    if path.is_dir():
        return any(holds_images(child) for child in path.iterdir() if not child.name.startswith("."))
    if path.suffix.lower() != ".parquet" or not path.exists():
        return False
    with parquet_file(path) as file:
        fields = [field for field in file.schema_arrow if _holds_bytes(field.type)]
    # Bytes beside a path, as Hugging Face has it, or bytes under a name of an image; other bytes may be text.
    return any(field.type.num_fields > 0 or field.name in _NAMES for field in fields)


def image_digest(path: Path, image: str | None, label: str, encoding: str) -> str:
    """sha256 over what `read_images` reads: the files of a folder; a table and the images that it names."""
    if path.is_dir():
        return digest(folder_images(path), root=path)
    data_files(path)
    if format_of(path) == "parquet":
        return digest([path])
    total = hashlib.sha256(digest([path]).encode())
    for row in read_images(path, image, label, encoding=encoding):
        total.update(hashlib.sha256(row.content()).digest())
    return total.hexdigest()


# --- parquet --------------------------------------------------------------------------------------


def _parquet_images(path: Path, image: str | None, label: str) -> list[ImageRow]:
    with parquet_file(path) as file:
        schema = file.schema_arrow
    image = image or _image_column(schema, path)
    column_positions(schema.names, [image, label], path.name)
    if not _holds_bytes(schema.field(image).type):
        raise DataError(
            f"{path.name}: column {image!r} holds {schema.field(image).type}; images are bytes, or a struct of bytes "
            "and path"
        )
    names = _class_names(schema.metadata, label)
    rows = [
        ImageRow(_source(row[image], image, path, where), _label(row[label], names, label, where), where)
        for row, where in read_objects(path, columns=[image, label])
    ]
    if not rows:
        raise DataError(no_rows(path))
    return rows


def _image_column(schema: Any, path: Path) -> str:
    names = [field.name for field in schema if _holds_bytes(field.type)]
    return names[0] if len(names) == 1 else _by_name(schema.names, _NAMES, path)


def _holds_bytes(kind: Any) -> bool:
    import pyarrow.types as kinds

    if kinds.is_struct(kind):
        return any(kind.field(i).name == "bytes" and _holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return kinds.is_binary(kind) or kinds.is_large_binary(kind)


def _source(cell: Any, image: str, path: Path, where: str) -> Path | bytes:
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if content:
        return bytes(content)
    name = cell.get("path") if isinstance(cell, dict) else None
    if not name:
        raise DataError(f"{where}: column {image!r} is null; fill it in or remove the row")
    return path.parent / str(name)


def _label(target: Any, names: Sequence[str], column: str, where: str) -> str:
    if names and isinstance(target, int):
        if not 0 <= target < len(names):
            raise DataError(f"{where}: column {column!r} is {target}, and the file names {len(names)} classes")
        return names[target]
    text = as_text(target, column, where).strip()
    if not text:
        raise DataError(f"{where}: column {column!r} is empty; fill it in or remove the row")
    return text


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str]:
    """The classes that Hugging Face's `datasets` writes into the file's metadata; empty where it names none."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        names = features[label]["names"]
    except (ValueError, KeyError, TypeError):
        return []
    return [str(name) for name in names]


def _by_name(columns: Sequence[str], usual: Sequence[str], path: Path) -> str:
    for name in usual:
        if name in columns:
            return name
    raise DataError(
        f"{path.name}: which column has the images? Give --image NAME"
        f"{suggest_nearest('image', columns) if columns else ''}"
    )
