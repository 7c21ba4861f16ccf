"""OfficeHome and CIFAR-10 from parquet files, without decoding images."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pyarrow import concat_tables, parquet

from tunewise.errors import DataError
from tunewise.locate import cache_folder
from tunewise.papers.reading import NAMES, find_files
from tunewise.papers.sets import PaperSet
from tunewise.spec import DataSpec


def make_spec(data: PaperSet, folder: Path, origin: str) -> DataSpec:
    """The images of a set. Raises `DataError` where the folder has no parquet files of a part.

    OfficeHome has no parts: all its files are one set, split 70 : 15 : 15. CIFAR-10 has a test part, and 5 % of train
    are for validation.
    """
    if data.key == "officehome":
        paths = {"path": _merge(find_files(folder, r"\.parquet$"), data, folder)}
    else:
        train, test = (_merge(find_files(folder, NAMES[part]), data, folder) for part in ("train", "test"))
        paths = {"path": train, "test": test}
    return DataSpec(
        **paths,
        label="label",
        image_size=None,
        validation_size=data.validation_size,
        test_size=None if "test" in paths else data.test_size,
        notes=[origin],
    )


def _merge(files: Sequence[Path], data: PaperSet, folder: Path) -> str:
    """The file, or its shards merged into one file in the cache."""
    if not files:
        raise DataError(f"{folder}: no parquet files of {data.printed}; see `tunewise paper list --data`")
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
