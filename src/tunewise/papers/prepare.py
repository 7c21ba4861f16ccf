"""A data set of the paper, from a folder or a hub, as files that any comparison takes, and the `DataSpec` that names
them. They are written once, into the cache, in a folder named by what is in them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from tunewise.errors import DataError
from tunewise.hub import HUB_PREFIX, fetch, parse_hub_path
from tunewise.locate import cache_folder, resolve
from tunewise.papers import image_sets
from tunewise.papers.reading import Item, Parts
from tunewise.papers.sets import PaperSet
from tunewise.spec import DataSpec
from tunewise.store.files import write_atomically
from tunewise.text_format import pluralize


def prepare(known: PaperSet, source: str | None = None, revision: str | None = None) -> DataSpec:
    """The set as its hub repository has it at `revision`, or as it lies in the folder `source`.

    What was changed or found missing on the way stands in `DataSpec.notes`; repeats and overlaps between parts are
    found and reported when the data is split (`tasks.splits`).

    Raises `SpecError` where the source can't be had, `DataError` where its files are of no known form, or damaged.
    """
    folder, origin = _source(known, source, revision)
    if not known.of_texts:
        return image_sets.spec_of(known, folder, origin)
    parts = next((found for form in known.forms if (found := form(folder)) is not None), None)
    if parts is None:
        raise DataError(
            f"{folder}: no files of {known.printed} in a form that is known; see `tunewise paper list --data`"
        )
    _complete(parts)
    _part_same(parts)
    notes = [origin, *([known.caveat] if known.caveat else []), *parts.notes]
    paths = _write(known, parts.items)
    paired = any(item.pair is not None for item in parts.items["train"])
    return DataSpec(
        path=paths["train"],
        validation=paths.get("validation"),
        test=paths.get("test"),
        text="text",
        text_pair="text_pair" if paired else None,
        label="label",
        validation_fraction=known.validation_fraction,
        test_fraction=known.test_fraction,
        notes=notes,
    )


def _source(known: PaperSet, source: str | None, revision: str | None) -> tuple[Path, str]:
    """The folder with the files, and a sentence that says whose they are."""
    if source is not None:
        folder = resolve(source)
        if not folder.is_dir():
            raise DataError(f"{source}: no such folder; give the one that holds the files of {known.printed}")
        return folder, f"{known.printed} from local files."
    wanted = parse_hub_path(f"{HUB_PREFIX}{known.hub}")
    found = fetch(
        wanted.repo,
        kind="dataset",
        revision=revision or wanted.revision,
        patterns=[wanted.inner],
        instead=f"give a folder with the files of {known.printed}: --data FOLDER (of several sets: FOLDER/{known.key})",
    )
    inside = found.folder / wanted.inner.rpartition("/")[0]  # other sets of the repository may lie beside it
    at = f" at commit {found.commit}" if found.commit else ""
    return inside, f"{known.printed} from the hub's {wanted.repo} ({wanted.inner}){at}."


def _part_same(parts: Parts) -> None:
    """Examples that are the same under other texts, in one part alone: test before validation before train."""
    for part, others in (("validation", ("test",)), ("train", ("validation", "test"))):
        for other in others:
            theirs = {item.same: item.text for item in parts.items.get(other, ()) if item.same}
            mine = parts.items.get(part, [])
            # one with the very same text is found and reported when the data is split
            kept = [item for item in mine if theirs.get(item.same, item.text) == item.text]
            if len(kept) < len(mine):
                parts.items[part] = kept
                count = pluralize(len(mine) - len(kept), "question")
                parts.notes.append(f"{part}: {count} removed, which {other} has with the answers in another order.")


def _complete(parts: Parts) -> None:
    """Parts without labels dropped; half of the validation part as the test part where there is none."""
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
    if "test" not in parts.items and "validation" in parts.items:
        validation, test = halves(parts.items["validation"])
        parts.items |= {"validation": validation, "test": test}
        parts.notes.append(
            f"No labelled test part is public: the validation part was halved, stratified by label, into "
            f"{len(validation):,} for selection and {len(test):,} for the test."
        )


def halves(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Two halves with the same shares of labels, each in the old order; one of fixed luck, the same everywhere."""
    draw = random.Random("halves|0")
    strata: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        strata.setdefault(_stratum(item), []).append(place)
    dealt = [
        place for _, places in sorted(strata.items()) for _, place in sorted((draw.random(), place) for place in places)
    ]
    second = set(dealt[1::2])
    return [i for p, i in enumerate(items) if p not in second], [i for p, i in enumerate(items) if p in second]


def _stratum(item: Item) -> str:
    """The label; of a number, its whole part."""
    label = item.label or ""
    try:
        return str(int(float(label)))
    except ValueError:
        return label


def _write(known: PaperSet, parts: Mapping[str, Sequence[Item]]) -> dict[str, str]:
    """Json lines for each part, in a folder of the cache that is named by their content."""
    texts = {part: "".join(_line(item) for item in items) for part, items in parts.items()}
    content = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / "paper" / known.key / content
    for part, text in texts.items():
        file = folder / f"{part}.jsonl"
        if not file.exists():
            write_atomically(file, text)
    return {part: str(folder / f"{part}.jsonl") for part in texts}


def _line(item: Item) -> str:
    row = {"text": item.text, "text_pair": item.pair, "label": item.label}
    return json.dumps({key: value for key, value in row.items() if value is not None}, ensure_ascii=False) + "\n"
