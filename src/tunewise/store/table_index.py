"""`runs/.table.parquet`: rows read from run folders earlier, each with the stamp of the file it was read from.

Only ever a shortcut: it is ignored where it is absent, damaged or of another version, may be deleted at any time, and
is replaced in one step, so that any number of processes read and write it at once without a lock. Any reader of
parquet opens it; its footer holds a checksum of the whole file (with zeros in the checksum's place).
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any, NamedTuple

from tunewise.store.files import write_atomically

NAME = ".table.parquet"
VERSION = 1
"""Of what the rows say: raised when the same record would give another row."""

TEXTS = ("id", "status", "method", "task", "model", "data", "metric", "started", "device", "problem", "spec")
INTEGERS = ("rank", "links", "seed", "trainable")
NUMBERS = ("alpha", "rate", "test", "gap", "seconds")
_SEAL = f"tunewise table {VERSION} sha256 ".encode()
_ZEROS = b"0" * 64


class Stamp(NamedTuple):
    """By which a file is told from a later one of its name."""

    mtime_ns: int
    size: int
    inode: int


Known = dict[str, tuple[Stamp, dict[str, Any]]]
"""By run id: the stamp of its record, and the row's fields; `spec` is JSON text."""


def read(root: Path) -> Known:
    """What the index knows; nothing where there is none that can be trusted."""
    try:
        raw = (root / NAME).read_bytes()
    except OSError:
        return {}
    place = raw.rfind(_SEAL) + len(_SEAL)
    written = raw[place : place + len(_ZEROS)]
    if raw.rfind(_SEAL) < 0 or _digest(raw[:place] + _ZEROS + raw[place + len(_ZEROS) :]) != written:
        return {}
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # `pq.read_table` would import what opens whole data sets, which takes longer than all the rest.
        found = pq.ParquetFile(pa.BufferReader(raw)).read(use_threads=False)
        if found.schema.names != _schema().names:
            return {}
        columns = {name: found.column(name).to_pylist() for name in found.schema.names}
    except (pa.ArrowException, OSError, ValueError):
        return {}
    stamps = [columns.pop(name) for name in Stamp._fields]
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return {row["id"]: (Stamp(*stamp), row) for row, stamp in zip(rows, zip(*stamps, strict=True), strict=True)}


def write(root: Path, known: Known) -> None:
    """Replace the index. Raises `OSError` and `StoreError` as `write_atomically` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = [{**row, **stamp._asdict()} for stamp, row in known.values()]
    table = pa.Table.from_pylist(content, schema=_schema())
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"checksum": (_SEAL + _ZEROS).decode()})
    raw = buffer.getvalue()
    place = raw.rfind(_SEAL) + len(_SEAL)
    write_atomically(root / NAME, raw[:place] + _digest(raw) + raw[place + len(_ZEROS) :])


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [(name, pa.string()) for name in TEXTS]
        + [(name, pa.int64()) for name in INTEGERS]
        + [(name, pa.float64()) for name in NUMBERS]
        + [("mtime_ns", pa.int64()), ("size", pa.int64()), ("inode", pa.uint64())]
    )


def _digest(raw: bytes) -> bytes:
    return hashlib.sha256(raw).hexdigest().encode()
