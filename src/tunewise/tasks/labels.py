"""Records with labels: columns checked, labels sorted, split for a fair comparison."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from tunewise.errors import DataError, SpecError, suggest_nearest
from tunewise.spec import DataSpec
from tunewise.tasks.files import read_rows, refuse_blank
from tunewise.tasks.splits import Record, Splits, make_splits, number_aware, read_parts
from tunewise.text_format import join_names

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
"""A number as data files write it; float() takes more: 1_0, other digits, infinity."""

_MISSING = ("nan", "NaN", "NAN", "<NA>", "NA", "N/A", "n/a", "null", "NULL", "None")  # as pandas reads and writes them


def load_labelled_texts(spec: DataSpec) -> tuple[list[str], Splits]:
    """Labels and split records of texts or pairs; a record's content is (text, second text or None)."""
    return load_labelled(spec, lambda path: read_texts(spec, path))


def load_labelled(spec: DataSpec, read: Callable[[Path], list[Record]], noun: str = "text") -> tuple[list[str], Splits]:
    """The labels of train, sorted, numbers by value ('2' before '10'), and the split records. Raises `DataError` for
    what `read` and `make_splits` refuse, a label that train lacks, and fewer than two labels."""
    records, notes = merge_equal_numbers(read_parts(spec, read))
    labels = labels_of(records["train"], spec)
    doubtful = [note for check in _LABEL_CHECKS for note in check(records["train"], labels)]
    for part, others in records.items():
        if part != "train":
            _refuse_unseen(others, set(labels))
    splits = make_splits(spec, records, noun=noun)
    return labels, Splits(splits.parts, [*notes, *doubtful, *splits.notes, *_absent_labels(splits, labels)])


def check_columns(columns: Mapping[str, str | None]) -> None:
    """Raises `SpecError` where one column is to be two things; `columns` maps a role to the column's name."""
    for name, count in Counter(name for name in columns.values() if name is not None).items():
        if count > 1:
            roles = " and ".join([", ".join(list(columns)[:-1]), list(columns)[-1]])
            raise SpecError(f"column {name!r} is asked for as two of {roles}; name another")


def merge_equal_numbers(records: Mapping[str, list[Record]]) -> tuple[dict[str, list[Record]], list[str]]:
    """Labels that are one number in several spellings (1, 1.0) as one label, the shortest; and sentences on it."""
    spellings: dict[Decimal, set[str]] = {}
    for label in {record.label for part in records.values() for record in part}:
        if NUMBER.fullmatch(label):
            spellings.setdefault(Decimal(label), set()).add(label)
    names: dict[str, str] = {}
    for group in spellings.values():
        names |= dict.fromkeys(group, min(group, key=lambda label: (len(label), label)))
    parts = {
        part: [replace(r, label=names.get(r.label, r.label), stratum=names.get(r.stratum, r.stratum)) for r in content]
        for part, content in records.items()
    }
    merged = [f"{label} is {name}" for label, name in sorted(names.items()) if label != name]
    return parts, [f"Labels with the same number are one class: {join_names(merged)}."] if merged else []


def labels_of(train: Sequence[Record], spec: DataSpec) -> list[str]:
    """The labels of the training file, sorted. Raises `DataError` for fewer than two."""
    labels = sorted({record.label for record in train}, key=number_aware)
    if len(labels) < 2:
        raise DataError(
            f"{spec.path}: all {len(train)} examples have the one label {labels[0]!r}, so there is "
            f"nothing to learn; check the column {spec.label!r} or add examples of another label"
        )
    return labels


def _joined_labels(train: Sequence[Record], labels: Sequence[str]) -> list[str]:
    """A sentence on labels that look like several in one cell (multi-label data): each is a class of its own."""
    for separator in ";|,/+&":
        pieces = {label: [p for piece in label.split(separator) if (p := piece.strip(" []'\""))] for label in labels}
        single = {of_label[0] for of_label in pieces.values() if len(of_label) == 1}
        shared = Counter(piece for of_label in pieces.values() for piece in set(of_label))
        if separator in ";|":  # others are common within a name: "Portland, OR", "PC/Mac", "C++"
            single |= {piece for piece, count in shared.items() if count > 1}
        joined = [label for label in labels if len(pieces[label]) > 1 and single.issuperset(pieces[label])]
        if joined:
            return [
                f"Warning: {join_names([repr(label) for label in joined])} (first in {_place(train, joined[0])}) look "
                f"like multi-label data, several labels with {separator!r} between them; each is learned as a class of "
                "its own. If that is not meant, keep one label in each row."
            ]
    return []


def _similar_labels(train: Sequence[Record], labels: Sequence[str]) -> list[str]:
    """A sentence on labels that are one for a reader (Food, food): each is a class of its own."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault("".join(unicodedata.normalize("NFKC", label).casefold().split()), []).append(label)
    similar = [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    if not similar:
        return []
    first = next(group[1] for group in groups.values() if len(group) > 1)
    return [
        f"Warning: {join_names(similar)} ({first!r} first in {_place(train, first)}) differ in case, blanks or the "
        "form of characters alone; each is learned as a class of its own. If that is not meant, write them alike."
    ]


def _missing_labels(train: Sequence[Record], labels: Sequence[str]) -> list[str]:
    """Sentences on words that programs write where a cell is empty: each is a class of its own."""
    return [
        f"Warning: {label!r} (first in {_place(train, label)}) looks like a missing label; it is learned as a class. "
        "If that is not meant, fill the labels in or remove the rows."
        for label in labels
        if label in _MISSING
    ]


_LABEL_CHECKS = (_joined_labels, _similar_labels, _missing_labels)


def _place(records: Sequence[Record], label: str) -> str:
    return next(record.where for record in records if record.label == label)


def _refuse_unseen(records: Iterable[Record], labels: set[str]) -> None:
    for record in records:
        if record.label not in labels:
            raise DataError(
                f"{record.where}: no training example has the label {record.label!r}: correct it, remove the "
                f"row or add such examples to train{suggest_nearest(record.label, labels)}"
            )


def _absent_labels(splits: Splits, labels: Sequence[str]) -> list[str]:
    notes = []
    for part, records in splits.parts.items():
        present = {record.label for record in records}
        absent = [label for label in labels if label not in present]
        if absent:
            notes.append(f"{part}: no example of {len(absent)} of {len(labels)} labels: {join_names(absent)}.")
    return notes


def read_texts(spec: DataSpec, path: Path, *, label: str | None = None) -> list[Record]:
    """The texts or pairs of a file with their labels, nothing dropped; with a `label` for all of them the file needs
    none. Raises `DataError` for an empty cell, and `SpecError` where one column is to be two things."""
    check_columns({"text": spec.text, "text_pair": spec.text_pair, "label": spec.label})
    names = [spec.text, spec.text_pair, spec.label if label is None else None]
    columns = [name for name in names if name is not None]
    records = []
    for row in read_rows(path, columns, encoding=spec.encoding, flat=label is not None):
        refuse_blank(row, columns)
        texts = (row.values[spec.text], row.values[spec.text_pair] if spec.text_pair is not None else None)
        own = row.values[spec.label].strip() if label is None else label
        records.append(Record(texts, own, own, row.where, texts))
    return records
