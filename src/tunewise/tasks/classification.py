"""Labelled texts and text pairs, split for a fair comparison: nothing that is trained on is evaluated on.

    read -> drop repeats -> take overlaps out of train -> cut the parts that have no file -> subsample

Everything is decided by the files and `DataSpec.split_seed`, never by a run's seed, so that all methods and
seeds see the same splits. What was dropped, moved or cut is said in `ClassificationData.notes`.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import random
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tunewise.errors import DataError, SpecError, nearest
from tunewise.locate import digest, resolve
from tunewise.spec import DataSpec
from tunewise.tasks.files import Row, data_files, read_rows


@dataclass(frozen=True, slots=True)
class Example:
    """A text, or a pair of texts, and the index of its label in `ClassificationData.labels`."""

    text: str
    text_pair: str | None
    label: int


@dataclass(frozen=True, slots=True)
class ClassificationData:
    """Three disjoint splits (no text, or pair, is in two), each in the order of its file.

    `labels` are sorted, numbers by value ('2' before '10'). `notes` are sentences on what was dropped, moved
    or cut.
    """

    labels: list[str]
    train: list[Example]
    validation: list[Example]
    test: list[Example]
    notes: list[str]


Input = tuple[str, str | None]  # what a model sees of an example: a text, or a pair


@dataclass(frozen=True, slots=True)
class _Record:
    input: Input
    label: str
    where: str


def load_classification(spec: DataSpec) -> ClassificationData:
    """The examples of a data set, checked and split; the same in every process.

    Of train, exact repeats are dropped (a text with two labels stays), and so is every text that validation
    or test has too; a text in validation and test stays in test alone. Parts without a file are then cut from
    train, stratified by label; a label's last example, and texts with two labels, stay in train. Sizes asked
    for are stratified subsamples of the parts: they never move an example from one part to another.

    Raises `DataError` (file, line, way out) for whatever `read_rows` refuses, an empty text or label, a label
    that train lacks, fewer than two labels, and too few examples to cut a part from; `SpecError` where one
    column is to be two things or the cut fractions leave nothing to train on.
    """
    _check_spec(spec)
    notes: list[str] = []
    given = {part: path for part in ("validation", "test") if (path := getattr(spec, part)) is not None}
    train = _read(spec, spec.path)
    labels = _labels_of(train, spec)
    evaluation = {part: _read(spec, path) for part, path in given.items()}
    for records in evaluation.values():
        _refuse_unseen(records, labels)

    train = _drop_repeats(train, notes)
    ambiguous = _inputs_with_two_labels(train, notes)
    _report_repeats(evaluation, notes)
    train, evaluation = _drop_overlaps(train, evaluation, notes)
    _refuse_lost_labels(train, labels, spec)
    train, cut = _cut_missing_parts(train, spec, ambiguous, notes)

    parts = {"train": train, **evaluation, **cut}
    parts = {part: _subsample(parts[part], part, spec, notes) for part in ("train", "validation", "test")}
    _report_absent_labels(parts, labels, notes)
    index = {label: i for i, label in enumerate(labels)}
    splits = {part: [Example(*r.input, index[r.label]) for r in records] for part, records in parts.items()}
    return ClassificationData(labels, splits["train"], splits["validation"], splits["test"], notes)


def digest_of(spec: DataSpec) -> str:
    """sha256 (64 hex digits) over the files that `spec` names, with their roles: train, validation, test.

    Raises as `load_classification` does where a file is absent.
    """
    roles = {"train": spec.path, "validation": spec.validation, "test": spec.test}
    content = {}
    for role, path in roles.items():
        if path is not None:
            found = resolve(path)
            content[role] = digest(data_files(found), root=found if found.is_dir() else None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# --- reading and checking -------------------------------------------------------------------------


def _check_spec(spec: DataSpec) -> None:
    columns = _columns(spec)
    for name, count in Counter(columns).items():
        if count > 1:
            raise SpecError(f"column {name!r} is asked for as two of text, text_pair and label; name another")
    if spec.validation is None and spec.test is None and spec.validation_fraction + spec.test_fraction >= 1:
        raise SpecError(
            f"validation_fraction {spec.validation_fraction} and test_fraction {spec.test_fraction} leave "
            "nothing to train on; together they must be below 1"
        )


def _columns(spec: DataSpec) -> list[str]:
    return [spec.text, *([spec.text_pair] if spec.text_pair is not None else []), spec.label]


def _read(spec: DataSpec, path: str) -> list[_Record]:
    rows = read_rows(resolve(path), _columns(spec), encoding=spec.encoding)
    return [_record(row, spec) for row in rows]


def _record(row: Row, spec: DataSpec) -> _Record:
    for column in _columns(spec):
        if not row.values[column].strip():
            raise DataError(f"{row.where}: column {column!r} is empty; fill it in or remove the row")
    pair = row.values[spec.text_pair] if spec.text_pair is not None else None
    return _Record((row.values[spec.text], pair), row.values[spec.label].strip(), row.where)


def _labels_of(train: Sequence[_Record], spec: DataSpec) -> list[str]:
    labels = sorted({record.label for record in train}, key=_number_aware)
    if len(labels) < 2:
        raise DataError(
            f"{spec.path}: all {len(train)} examples have the one label {labels[0]!r}, so there is "
            f"nothing to tell apart; check the column {spec.label!r} or add examples of another label"
        )
    return labels


def _number_aware(label: str) -> tuple[bool, float, list[tuple[int, str]], str]:
    """Sorting key: numbers first, by value; then names, those with numbers in them as 'top2', 'top10'."""
    if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", label):
        return (False, float(label), [], label)
    # The split puts numbers at odd places. Of two without leading zeros the longer is the larger: no int() is
    # needed, which refuses thousands of digits.
    pieces = [p.lstrip("0") if i % 2 else p for i, p in enumerate(re.split("([0-9]+)", label))]
    return (True, 0.0, [(len(p) if i % 2 else 0, p) for i, p in enumerate(pieces)], label)


def _refuse_unseen(records: Iterable[_Record], labels: Sequence[str]) -> None:
    known = set(labels)
    for record in records:
        if record.label not in known:
            raise DataError(
                f"{record.where}: no training example has the label {record.label!r}: correct it, remove the "
                f"row or add such examples to train{nearest(record.label, labels)}"
            )


def _refuse_lost_labels(train: Iterable[_Record], labels: Sequence[str], spec: DataSpec) -> None:
    left = {record.label for record in train}
    for label in labels:
        if label not in left:
            raise DataError(
                f"{spec.path}: every training example of label {label!r} is also in the validation or test "
                "file; give training examples that those files do not hold"
            )


# --- repeats and overlaps -------------------------------------------------------------------------


def _drop_repeats(train: Sequence[_Record], notes: list[str]) -> list[_Record]:
    first: dict[tuple[Input, str], _Record] = {}
    for record in train:
        first.setdefault((record.input, record.label), record)
    if len(first) < len(train):
        notes.append(f"train: {_count(len(train) - len(first), 'exact duplicate')} dropped.")
    return list(first.values())


def _inputs_with_two_labels(train: Iterable[_Record], notes: list[str]) -> set[Input]:
    """Inputs that occur under more than one label, in a `train` without exact repeats."""
    first: dict[Input, _Record] = {}
    ambiguous: dict[Input, str] = {}
    for record in train:
        if first.setdefault(record.input, record) is not record:
            ambiguous.setdefault(record.input, f"{first[record.input].where} and {record.where}")
    if ambiguous:
        example = next(iter(ambiguous.values()))
        notes.append(f"train: {_count(len(ambiguous), 'text')} with more than one label kept ({example}).")
    return set(ambiguous)


def _report_repeats(evaluation: Mapping[str, Sequence[_Record]], notes: list[str]) -> None:
    for part, records in evaluation.items():
        repeats = len(records) - len({record.input for record in records})
        if repeats:
            notes.append(f"{part}: {_count(repeats, 'repeated text')} kept, so that the file is scored whole.")


def _drop_overlaps(
    train: list[_Record], evaluation: dict[str, list[_Record]], notes: list[str]
) -> tuple[list[_Record], dict[str, list[_Record]]]:
    """Each input in one part only, test before validation before train, whatever its labels."""
    evaluation = dict(evaluation)
    if "validation" in evaluation and "test" in evaluation:
        kept = _without(evaluation["validation"], evaluation["test"], "validation", "test", notes)
        if not kept:
            raise DataError("validation: all of its texts are in test too; give two different files")
        evaluation["validation"] = kept
    for part, records in evaluation.items():
        train = _without(train, records, "train", part, notes)
    return train, evaluation


def _without(
    records: list[_Record], others: Iterable[_Record], part: str, other: str, notes: list[str]
) -> list[_Record]:
    theirs = {record.input for record in others}
    kept = [record for record in records if record.input not in theirs]
    if len(kept) < len(records):
        notes.append(f"{part}: {_count(len(records) - len(kept), 'example')} removed, whose text {other} has.")
    return kept


# --- cutting and subsampling ----------------------------------------------------------------------


def _cut_missing_parts(
    train: list[_Record], spec: DataSpec, ambiguous: set[Input], notes: list[str]
) -> tuple[list[_Record], dict[str, list[_Record]]]:
    """What is left of train, and the parts cut from it; both fractions are of train as it was before."""
    missing = [part for part in ("test", "validation") if getattr(spec, part) is None]
    if missing:
        _report_single_examples(train, notes)
    whole = len(train)
    wanted = {part: max(1, round(whole * getattr(spec, f"{part}_fraction"))) for part in missing}
    spare = sum(_spare(train, ambiguous).values())
    sizes = _allot(min(spare, sum(wanted.values())), wanted, most=wanted)
    cut = {}
    for part, size in sizes.items():
        quotas = _allot(size, _counts(train), most=_spare(train, ambiguous))
        cut[part], train = _draw(train, quotas, f"{spec.split_seed}|split|{part}", kept_back=ambiguous)
        if not cut[part]:
            raise DataError(
                f"{spec.path}: {_count(whole, 'example')} of {_count(len(quotas), 'label')} are too few to "
                f"cut a {part} part from; name a {part} file, or check the column {spec.label!r}"
            )
        notes.append(
            f"{part}: no file given; {len(cut[part]):,} of {whole:,} examples cut from train "
            f"(stratified by label, split seed {spec.split_seed})."
        )
    return train, cut


def _spare(train: Sequence[_Record], ambiguous: set[Input]) -> dict[str, int]:
    """How many examples of each label can be cut: one at least is left to train on, and so are texts with two
    labels, which would else be trained on under one label and scored under the other."""
    free = Counter(record.label for record in train if record.input not in ambiguous)
    return {label: min(free[label], count - 1) for label, count in _counts(train).items()}


def _report_single_examples(train: Iterable[_Record], notes: list[str]) -> None:
    single = [label for label, count in _counts(train).items() if count == 1]
    if single:
        notes.append(f"train: the only example of {_count(len(single), 'label')} stays here: {_listed(single)}.")


def _subsample(records: list[_Record], part: str, spec: DataSpec, notes: list[str]) -> list[_Record]:
    """As many examples as `spec` asks of this part, stratified; every label once in train where that fits."""
    size = getattr(spec, f"{part}_size")
    if size is None:
        return records
    if size > len(records):
        notes.append(f"{part}: {size:,} examples asked for, all {len(records):,} there are used.")
        return records
    counts = _counts(records)
    least = 1 if part == "train" and size >= len(counts) else 0
    quotas = _allot(size, counts, most=counts, least=least)
    drawn, _ = _draw(records, quotas, f"{spec.split_seed}|subsample|{part}")
    if len(drawn) < len(records):
        notes.append(
            f"{part}: {size:,} of {len(records):,} examples kept (stratified by label, split seed {spec.split_seed})."
        )
    return drawn


def _counts(records: Iterable[_Record]) -> dict[str, int]:
    """Examples of each label, in the order of labels."""
    counts = Counter(record.label for record in records)
    return {label: counts[label] for label in sorted(counts, key=_number_aware)}


def _allot(total: int, counts: Mapping[str, int], *, most: Mapping[str, int], least: int = 0) -> dict[str, int]:
    """`total` shared out in proportion to `counts`: whole shares within bounds, by largest remainder.

    The shares sum to `total` where the bounds allow it; of equal remainders the earlier key comes first.
    """
    whole = sum(counts.values())
    exact = {key: total * count / whole for key, count in counts.items()}
    shares = {key: min(max(math.floor(exact[key]), least), most[key]) for key in counts}
    missing = total - sum(shares.values())
    step = 1 if missing > 0 else -1
    open_keys = [
        (step * (shares[key] - exact[key]), rank, key)
        for rank, key in enumerate(counts)
        if shares[key] != (most[key] if step > 0 else least)
    ]
    heapq.heapify(open_keys)
    while missing and open_keys:
        _, rank, key = heapq.heappop(open_keys)
        shares[key] += step
        missing -= step
        if shares[key] != (most[key] if step > 0 else least):
            heapq.heappush(open_keys, (step * (shares[key] - exact[key]), rank, key))
    return shares


def _draw(
    records: Sequence[_Record], quotas: Mapping[str, int], stream: str, kept_back: Container[Input] = ()
) -> tuple[list[_Record], list[_Record]]:
    """The drawn records and the others, both in their old order; one random stream for each label.

    Seeded by text and drawn by `random()` alone, which Python promises to keep the same across versions.
    """
    places: dict[str, list[int]] = {label: [] for label in quotas}
    for place, record in enumerate(records):
        if record.input not in kept_back:
            places[record.label].append(place)
    drawn: set[int] = set()
    for label, candidates in places.items():
        generator = random.Random(f"{stream}|{label}")
        shuffled = sorted((generator.random(), place) for place in candidates)
        drawn.update(place for _, place in shuffled[: quotas[label]])
    return (
        [record for place, record in enumerate(records) if place in drawn],
        [record for place, record in enumerate(records) if place not in drawn],
    )


# --- notes ----------------------------------------------------------------------------------------


def _report_absent_labels(parts: Mapping[str, Sequence[_Record]], labels: Sequence[str], notes: list[str]) -> None:
    for part, records in parts.items():
        present = {record.label for record in records}
        absent = [label for label in labels if label not in present]
        if absent:
            notes.append(f"{part}: no example of {len(absent)} of {len(labels)} labels: {_listed(absent)}.")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _listed(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
