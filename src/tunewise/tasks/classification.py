"""Labelled texts and text pairs out of files, split for a fair comparison (`splits.py`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tunewise.errors import DataError, SpecError, nearest
from tunewise.locate import resolve
from tunewise.spec import DataSpec
from tunewise.tasks.digests import digest_by_role
from tunewise.tasks.files import Row, read_rows
from tunewise.tasks.splits import PARTS, Record, Splits, check_fractions, make_splits, number_aware
from tunewise.words import listed


@dataclass(frozen=True, slots=True)
class Example:
    """A text, or a pair of texts, and the index of its label in `ClassificationData.labels`, or its number."""

    text: str
    text_pair: str | None
    label: int | float


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


def load_classification(spec: DataSpec) -> ClassificationData:
    """The examples of a data set, checked and split by `make_splits`; the same in every process.

    Raises `DataError` (file, line, way out) for whatever `read_rows` refuses, an empty text or label, a label
    that train lacks, fewer than two labels, and too few examples to cut a part from; `SpecError` where one
    column is to be two things or the cut fractions leave nothing to train on.
    """
    check_columns({"text": spec.text, "text_pair": spec.text_pair, "label": spec.label})
    check_fractions(spec)
    given = {part: path for part in ("validation", "test") if (path := getattr(spec, part)) is not None}
    train = read_texts(spec, spec.path)
    labels = labels_of(train, spec)
    evaluation = {part: read_texts(spec, path) for part, path in given.items()}
    for records in evaluation.values():
        refuse_unseen(records, labels)
    splits = make_splits(spec, train, evaluation)
    index = {label: i for i, label in enumerate(labels)}

    def examples(records: Iterable[Record]) -> list[Example]:
        return [Example(record.content[0], record.content[1], index[record.label]) for record in records]

    notes = [*splits.notes, *absent_labels(splits, labels)]
    return ClassificationData(labels, examples(splits.train), examples(splits.validation), examples(splits.test), notes)


def digest_of(spec: DataSpec) -> str:
    """sha256 (64 hex digits) over the files that `spec` names, with their roles: train, validation, test.

    Raises as `load_classification` does where a file is absent.
    """
    return digest_by_role(spec)


def check_columns(columns: Mapping[str, str | None]) -> None:
    """Raises `SpecError` where one column is to be two things; `columns` maps a role to the column's name."""
    for name, count in Counter(name for name in columns.values() if name is not None).items():
        if count > 1:
            roles = " and ".join([", ".join(list(columns)[:-1]), list(columns)[-1]])
            raise SpecError(f"column {name!r} is asked for as two of {roles}; name another")


def labels_of(train: Sequence[Record], spec: DataSpec) -> list[str]:
    """The labels of the training file, sorted. Raises `DataError` for fewer than two."""
    labels = sorted({record.label for record in train}, key=number_aware)
    if len(labels) < 2:
        raise DataError(
            f"{spec.path}: all {len(train)} examples have the one label {labels[0]!r}, so there is "
            f"nothing to tell apart; check the column {spec.label!r} or add examples of another label"
        )
    return labels


def refuse_unseen(records: Iterable[Record], labels: Sequence[str]) -> None:
    """Raises `DataError` for a label that no training example has."""
    known = set(labels)
    for record in records:
        if record.label not in known:
            raise DataError(
                f"{record.where}: no training example has the label {record.label!r}: correct it, remove the "
                f"row or add such examples to train{nearest(record.label, labels)}"
            )


def absent_labels(splits: Splits, labels: Sequence[str]) -> list[str]:
    """A sentence for each part that lacks some of the labels."""
    notes = []
    for part in PARTS:
        present = {record.label for record in getattr(splits, part)}
        absent = [label for label in labels if label not in present]
        if absent:
            notes.append(f"{part}: no example of {len(absent)} of {len(labels)} labels: {listed(absent)}.")
    return notes


def refuse_blank(row: Row, columns: Iterable[str]) -> None:
    """Raises `DataError` for a cell with nothing but blanks."""
    for column in columns:
        if not row.values[column].strip():
            raise DataError(f"{row.where}: column {column!r} is empty; fill it in or remove the row")


def read_texts(spec: DataSpec, path: str) -> list[Record]:
    """The texts or pairs of a file with their labels, nothing dropped. Raises `DataError` for an empty cell."""
    columns = [spec.text, *([spec.text_pair] if spec.text_pair is not None else []), spec.label]
    return [_record(row, spec, columns) for row in read_rows(resolve(path), columns, encoding=spec.encoding)]


def _record(row: Row, spec: DataSpec, columns: Sequence[str]) -> Record:
    refuse_blank(row, columns)
    pair = row.values[spec.text_pair] if spec.text_pair is not None else None
    texts = (row.values[spec.text], pair)
    label = row.values[spec.label].strip()
    return Record(texts, label, label, row.where, texts)
