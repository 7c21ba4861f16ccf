"""Labelled texts as a data set's files and split give them, without a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from tunewise.spec import DataSpec
from tunewise.tasks.labels import load_labelled_texts


@dataclass(frozen=True)
class Example:
    text: str
    text_pair: str | None
    label: int


@dataclass(frozen=True)
class LabelledTexts:
    labels: list[str]
    train: list[Example]
    validation: list[Example]
    test: list[Example]
    notes: list[str]


def load(spec: DataSpec) -> LabelledTexts:
    labels, splits = load_labelled_texts(spec)
    parts = {
        part: [Example(*record.content, labels.index(record.label)) for record in records]
        for part, records in splits.parts.items()
    }
    return LabelledTexts(labels, notes=splits.notes, **parts)
