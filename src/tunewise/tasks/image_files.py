"""Labelled images from a folder of class folders or a parquet file of images; nothing is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunewise.errors import DataError, SpecError, suggest_nearest
from tunewise.tasks.files import (
    as_text,
    check_names,
    class_names,
    data_files,
    files_of_folder,
    format_of,
    parquet_file,
    read_records,
)

if TYPE_CHECKING:
    from pyarrow import DataType, Schema

IMAGE_FILES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Endings of the names in class folders of images."""
_NAMES = ("image", "img")  # of a column that holds images


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
            raise DataError(f"{self.where}: {error.strerror}; check its permissions, or remove the file") from None


def read_images(path: Path, image: str | None, label: str | None) -> list[ImageRow]:
    """The images of a folder of class folders (sorted by name) or of a parquet file; at least one.

    `image` is the column of images (bytes, or Hugging Face's struct of bytes and path), detected where None. Without a
    `label` a folder may hold its images itself. Raises `DataError` for what can't be read, and `SpecError` for a column
    of a folder.
    """
    files = data_files(path, IMAGE_FILES, flat=label is None)
    if path.is_dir():
        if image is not None:
            raise SpecError(f"{path} is a folder of class folders, which has no column {image!r}; leave --image out")
        return [ImageRow(file, file.parent.name, f"{file.parent.name}/{file.name}") for file in files]
    if format_of(path) != "parquet":
        raise DataError(f"{path.name}: images are read from a folder of class folders, or from parquet")
    return _parquet_images(path, image, label)


def looks_like_images(path: Path) -> bool:
    """Whether the layout shows images: class folders with images in them, a parquet column of images."""
    if path.is_dir():
        children = (child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
        return any(files_of_folder(child, IMAGE_FILES) for child in children)
    if path.suffix.lower() != ".parquet" or not path.exists():
        return False
    with parquet_file(path) as file:
        fields = [field for field in file.schema_arrow if _holds_bytes(field.type)]
    # Bytes beside a path, as Hugging Face has it, or bytes under a name of an image; other bytes may be text.
    return any(field.type.num_fields > 0 or field.name in _NAMES for field in fields)


def _parquet_images(path: Path, image: str | None, label: str | None) -> list[ImageRow]:
    with parquet_file(path) as file:
        schema = file.schema_arrow
    image = image or _image_column(schema, path)
    columns = [image] if label is None else [image, label]
    check_names(schema.names, columns, path.name)
    if not _holds_bytes(schema.field(image).type):
        raise DataError(
            f"{path.name}: column {image!r} holds {schema.field(image).type}; images are bytes, or a struct of bytes "
            "and path"
        )
    names = [] if label is None else class_names(path, label)
    rows = []
    for cells, where in read_records(path, columns):
        cell = cells[image]
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes) or not content:
            raise DataError(f"{where}: column {image!r} is null; fill it in or remove the row")
        rows.append(ImageRow(content, "" if label is None else _label(cells[label], names, label, where), where))
    return rows


def _image_column(schema: Schema, path: Path) -> str:
    names = [field.name for field in schema if _holds_bytes(field.type)]
    usual = [name for name in _NAMES if name in schema.names]
    if len(names) != 1 and not usual:
        raise DataError(
            f"{path.name}: which column has the images? Give --image NAME{suggest_nearest('image', schema.names)}"
        )
    return names[0] if len(names) == 1 else usual[0]


def _holds_bytes(kind: DataType) -> bool:
    import pyarrow.types as kinds

    if kinds.is_struct(kind):
        return any(kind.field(i).name == "bytes" and _holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return kinds.is_binary(kind) or kinds.is_large_binary(kind)


def _label(target: object, names: Sequence[str], column: str, where: str) -> str:
    if names and isinstance(target, int):
        if not 0 <= target < len(names):
            raise DataError(f"{where}: column {column!r} is {target}, and the file names {len(names)} classes")
        return names[target]
    text = as_text(target, column, where).strip()
    if not text:
        raise DataError(f"{where}: column {column!r} is empty; fill it in or remove the row")
    return text
