"""Records with labels: columns checked, labels sorted, split for a fair comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tunewise.errors import DataError, SpecError, suggest_nearest
from tunewise.spec import DataSpec
from tunewise.tasks.files import read_rows, refuse_blank
from tunewise.tasks.splits import Record, Splits, make_splits, number_aware, read_parts
from tunewise.text_format import join_names


def load_labelled_texts(spec: DataSpec) -> tuple[list[str], Splits]:
    """Labels and split records of texts or pairs; a record's content is (text, second text or None)."""
    return load_labelled(spec, lambda path: read_texts(spec, path))


def load_labelled(spec: DataSpec, read: Callable[[Path], list[Record]], noun: str = "text") -> tuple[list[str], Splits]:
    """The labels of train, sorted, numbers by value ('2' before '10'), and the split records. Raises `DataError` for
    what `read` and `make_splits` refuse, a label that train lacks, and fewer than two labels."""
    records = read_parts(spec, read)
    labels = labels_of(records["train"], spec)
    for part, others in records.items():
        if part != "train":
            _refuse_unseen(others, set(labels))
    splits = make_splits(spec, records, noun=noun)
    splits.notes.extend(_absent_labels(splits, labels))
    return labels, splits


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
            f"nothing to learn; check the column {spec.label!r} or add examples of another label"
        )
    return labels


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


def read_texts(spec: DataSpec, path: Path) -> list[Record]:
    """The texts or pairs of a file with their labels, nothing dropped. Raises `DataError` for an empty cell, and
    `SpecError` where one column is to be two things."""
    check_columns({"text": spec.text, "text_pair": spec.text_pair, "label": spec.label})
    columns = [name for name in (spec.text, spec.text_pair, spec.label) if name is not None]
    records = []
    for row in read_rows(path, columns, encoding=spec.encoding):
        refuse_blank(row, columns)
        texts = (row.values[spec.text], row.values[spec.text_pair] if spec.text_pair is not None else None)
        label = row.values[spec.label].strip()
        records.append(Record(texts, label, label, row.where, texts))
    return records
