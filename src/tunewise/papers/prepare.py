"""A data set of the paper, from a folder or a hub, as files for any comparison, and the `DataSpec` that names them.

The files are written once, into the cache, in a folder named by a hash of their content.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyarrow import concat_tables, parquet

from tunewise.cache import cache_folder
from tunewise.errors import DataError
from tunewise.hub import HUB_PREFIX, fetch, parse_hub_path
from tunewise.locate import resolve
from tunewise.papers.forms import DataParts, TextItem, read_form
from tunewise.papers.reading import part_files
from tunewise.papers.sets import PaperSet
from tunewise.spec import DataSpec
from tunewise.store.files import write_atomically
from tunewise.text_format import pluralize


def prepare(data: PaperSet, source: str | None = None, revision: str | None = None) -> DataSpec:
    """The set from its hub repository at `revision`, or from the folder `source`.

    `DataSpec.notes` lists the changes. Repeats and overlaps between parts are removed later, when the data is split.

    Raises `SpecError` where the source is not available, `DataError` where its files are damaged or have another form.
    """
    folder, origin = _source(data, source, revision)
    notes = [origin, *([data.caveat] if data.caveat else [])]
    columns = {}
    if data.has_texts:
        parts = next((parts for form in data.forms if (parts := read_form(form, folder)) is not None), DataParts({}))
        _drop_unlabelled(parts)
        if "test" not in parts.items and "validation" in parts.items:
            _split_validation(parts)
        _remove_same(parts)
        paths = _write(data, parts.items)
        notes += parts.notes
        paired = any(item.pair is not None for item in parts.items.get("train", ()))
        columns = {"text": "text", **({"text_pair": "text_pair"} if paired else {})}
    else:
        paths = {part: _merge(files, data) for part, files in part_files(data.forms[0], folder).items()}
    if "train" not in paths:
        raise DataError(
            f"{folder}: no files of {data.printed} in a known form; `tunewise paper list --data` names the repository"
        )
    return DataSpec(
        path=paths["train"],
        validation=paths.get("validation"),
        test=paths.get("test"),
        **columns,
        label="label",
        validation_size=None if "validation" in paths else data.validation_size,
        test_size=None if "test" in paths else data.test_size,
        notes=notes,
    )


def _source(data: PaperSet, source: str | None, revision: str | None) -> tuple[Path, str]:
    """The folder with the files, and a sentence about their origin."""
    if source is not None:
        folder = resolve(source)
        if not folder.is_dir():
            raise DataError(f"{source}: no such folder; give the folder with the files of {data.printed}")
        return folder, f"{data.printed} from local files."
    wanted = parse_hub_path(f"{HUB_PREFIX}{data.hub}")
    fetched = fetch(
        wanted.repo,
        kind="dataset",
        revision=revision or wanted.revision,
        patterns=[wanted.inner],
        instead=f"give a folder with the files of {data.printed}: --data FOLDER (of several sets: FOLDER/{data.key})",
    )
    inside = fetched.folder / wanted.inner.rpartition("/")[0]  # the repository may contain other sets
    at = f" at commit {fetched.commit}" if fetched.commit else ""
    return inside, f"{data.printed} from the hub's {wanted.repo} ({wanted.inner}){at}."


def _drop_unlabelled(parts: DataParts) -> None:
    for part in list(parts.items):
        unlabelled = [item for item in parts.items[part] if item.label is None]
        if not unlabelled:
            continue
        if part == "train":
            raise DataError(f"{unlabelled[0].where}: a training example without a label; add it or remove the row")
        labelled = [item for item in parts.items[part] if item.label is not None]
        parts.notes.append(f"{part}: {pluralize(len(unlabelled), 'example')} without a published label left out.")
        if labelled:
            parts.items[part] = labelled
        else:
            del parts.items[part]


def _split_validation(parts: DataParts) -> None:
    validation, test = halves(parts.items["validation"])
    parts.items |= {"validation": validation, "test": test}
    parts.notes.append(
        f"No labelled test part is public: the validation part was halved, stratified by label, into "
        f"{len(validation):,} for selection and {len(test):,} for the test."
    )


def _remove_same(parts: DataParts) -> None:
    """Keeps items that are the same under other texts in one part only: test before validation before train."""
    for part, others in (("validation", ("test",)), ("train", ("validation", "test"))):
        for other in others:
            theirs = {item.same: item.text for item in parts.items.get(other, ()) if item.same}
            items = parts.items.get(part, [])
            # items with an identical text are removed and reported later, when the data is split
            different = [item for item in items if theirs.get(item.same, item.text) == item.text]
            if len(different) < len(items):
                parts.items[part] = different
                count = pluralize(len(items) - len(different), "question")
                parts.notes.append(f"{part}: {count} removed, which {other} has with the answers in another order.")


def halves(items: Sequence[TextItem]) -> tuple[list[TextItem], list[TextItem]]:
    """Two halves with the same shares of labels, each in the old order; always the same split."""
    draw = random.Random("halves|0")
    strata: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        strata.setdefault(_stratum(item), []).append(place)
    shuffled = [
        place for _, places in sorted(strata.items()) for _, place in sorted((draw.random(), place) for place in places)
    ]
    second = set(shuffled[1::2])
    return [i for p, i in enumerate(items) if p not in second], [i for p, i in enumerate(items) if p in second]


def _stratum(item: TextItem) -> str:
    """The label, or the integer part of a number."""
    label = item.label or ""
    try:
        return str(int(float(label)))
    except ValueError:
        return label


def _write(data: PaperSet, parts: Mapping[str, Sequence[TextItem]]) -> dict[str, str]:
    """Writes json lines for each part; returns their paths."""
    texts = {part: "".join(_json_line(item) for item in items) for part, items in parts.items()}
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / "paper" / data.key / digest
    for part, text in texts.items():
        file = folder / f"{part}.jsonl"
        if not file.exists():
            write_atomically(file, text)
    return {part: str(folder / f"{part}.jsonl") for part in texts}


def _json_line(item: TextItem) -> str:
    row = {"text": item.text, "text_pair": item.pair, "label": item.label}
    return json.dumps({key: value for key, value in row.items() if value is not None}, ensure_ascii=False) + "\n"


def _merge(files: Sequence[Path], data: PaperSet) -> str:
    """A parquet file of images, or its shards merged into one file in the cache."""
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
