"""Which labels are one class, and which are doubtful: each with a note."""

from __future__ import annotations

import json

import pytest

from tunewise.spec import DataSpec
from tunewise.tasks.labels import load_labelled_texts


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def labelled(tmp_path, labels, test=(), name="a.jsonl"):
    train = write(tmp_path / name, "".join(f'{{"text": "t{i}", "label": {label}}}\n' for i, label in enumerate(labels)))
    held_out = write(tmp_path / "test.csv", "text,label\n" + "".join(f"u{i},{label}\n" for i, label in enumerate(test)))
    return DataSpec(path=str(train), test=str(held_out) if test else None)


def test_equal_numbers_are_one_class_and_it_is_said(tmp_path):
    labels, splits = load_labelled_texts(
        labelled(tmp_path, ["1", "1.0", "0", "0.0", '"+1"', "1e0", "-0.0", '"01"'] * 5)
    )
    assert labels == ["0", "1"]
    assert sum(record.label == "1" for part in splits.parts.values() for record in part) == 25
    assert any("0.0 is 0" in note and "1e0 is 1" in note for note in splits.notes)
    labels, splits = load_labelled_texts(labelled(tmp_path, ["1.0", "2.0"] * 10, test=["1", "2"]))
    assert labels == ["1", "2"] and {r.label for r in splits.parts["test"]} == {"1", "2"}


def test_one_spelling_is_kept_as_it_is(tmp_path):
    labels, splits = load_labelled_texts(labelled(tmp_path, ['"01"', '"2.50"', '"1_0"'] * 8))
    assert sorted(labels) == ["01", "1_0", "2.50"]
    assert not any("one class" in note for note in splits.notes)


@pytest.mark.parametrize(
    "label",
    ["neg+pos", "neg & pos", "neg;pos", "neg|pos", "neg, pos", "pos/neg", "['neg', 'pos']", "neg;other", "pos;pos"],
)
def test_several_labels_in_a_cell_are_classes_with_a_warning(tmp_path, label):
    labels = ["neg", "pos", "pos", label, "pos;other" if "other" in label else "neg"] * 4
    classes, splits = load_labelled_texts(labelled(tmp_path, map(json.dumps, labels)))
    assert set(classes) == set(labels)
    (warning,) = [note for note in splits.notes if note.startswith("Warning")]
    assert repr(label) in warning and "multi-label data" in warning


@pytest.mark.parametrize(
    ("label", "other"), [("Food", "food"), ("TRUE", " true"), ("new york", "new  york"), ("caf\u00e9", "cafe\u0301")]
)
def test_labels_that_a_reader_takes_for_one_are_classes_with_a_warning(tmp_path, label, other):
    classes, splits = load_labelled_texts(labelled(tmp_path, map(json.dumps, [label, "tools", other] * 8)))
    assert set(classes) == {label, other.strip(), "tools"}
    (warning,) = [note for note in splits.notes if note.startswith("Warning")]
    assert repr(label) in warning and repr(other.strip()) in warning and "tools" not in warning


@pytest.mark.parametrize("label", ["nan", "NaN", "None", "N/A"])
def test_a_word_for_a_missing_label_is_a_class_with_a_warning(tmp_path, label):
    classes, splits = load_labelled_texts(labelled(tmp_path, map(json.dumps, ["neg", "pos", label] * 8)))
    assert set(classes) == {"neg", "pos", label}
    (warning,) = [note for note in splits.notes if note.startswith("Warning")]
    assert f"{label!r} (first in a.jsonl, line 3) looks like a missing label" in warning


def test_names_with_separators_are_labels(tmp_path):
    names = ["Portland, OR", "Portland, ME", "Salem, OR", "AC/DC", "rock; pop", "news", "C", "C++"]
    labels, splits = load_labelled_texts(labelled(tmp_path, map(json.dumps, names * 4)))
    assert labels == sorted(names, key=str)
    assert not any("multi-label" in note for note in splits.notes)
