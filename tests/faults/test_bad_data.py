"""Planted bad data: each fault is one line that names file, row and way out; never a traceback."""

from __future__ import annotations

import gzip
import random

import pyarrow
import pytest
from pyarrow import parquet

from tunewise.errors import DataError, SpecError
from tunewise.spec import DataSpec
from tunewise.tasks.files import digest_by_part, read_rows
from tunewise.tasks.labels import load_labelled_texts

COLUMNS = ["text", "label"]
GOOD = "text,label\none,a\ntwo,b\nthree,a\nfour,b\nfive,a\nsix,b\n"


def plant(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def fault_of(read, *arguments, **options) -> str:
    """The one line that a fault is told in."""
    with pytest.raises(DataError) as error:
        read(*arguments, **options)
    message = str(error.value)
    assert "\n" not in message
    assert error.value.exit_code == 2
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return message


# file, content, where the fault is, what is said of it, the way out
BAD_FILES = [
    ("a.csv", "", "a.csv:", "is empty", "give one with examples"),
    ("a.csv", "\n \n", "a.csv:", "is empty", "give one with examples"),
    ("a.csv", b"\xef\xbb\xbf", "a.csv:", "is empty", "give one with examples"),
    ("a.csv.gz", b"", "a.csv.gz:", "is empty", "give one with examples"),
    ("a.jsonl", "", "a.jsonl:", "is empty", "give one with examples"),
    ("a.csv", "text,label\n", "a.csv:", "no rows", "give one with examples"),
    (
        "a.csv",
        "text,label\nx,1\ny\n",
        "a.csv, line 3:",
        "1 field where the header has 2",
        "add what is missing",
    ),
    (
        "a.csv",
        "text,label\nx, y,1\n",
        "a.csv, line 2:",
        "3 fields where the header has 2",
        "put quotes around",
    ),
    ("a.csv", 'text,label\n"x\ny",1\nz\n', "a.csv, line 4:", "1 field", "or remove the line"),
    ("a.tsv", "text\tlabel\nx\ty\t1\n", "a.tsv, line 2:", "3 fields", "holds a tab"),
    ("a.csv", 'text,label\nx,1\n"y,2\nz,3\n', "a.csv, line 3:", "never closed", 'as ""'),
    ("a.csv", 'text,label\n"y" z,2\n', "a.csv, line 2:", "expected after", 'as ""'),
    ("a.csv", "text,label\nx,1\ny\0,2\n", "a.csv, line 3:", "NUL byte", "--encoding utf-16"),
    ("a.csv", "Text,label\nx,1\n", "a.csv:", "no column 'text'", "did you mean 'Text'?"),
    ("a.csv", "review,label\nx,1\n", "a.csv:", "no column 'text'", "choose one of: label, review"),
    ("a.csv", "text;label\nx;1\n", "a.csv:", "separated by ';'", "save it with commas"),
    ("a.csv", "text\tlabel\nx\t1\n", "a.csv:", "separated by tabs", "as .tsv"),
    ("a.csv", "text,text,label\nx,y,1\n", "a.csv:", "two columns are named 'text'", "rename one"),
    (
        "a.csv",
        b"text,label\nx,1\ncaf\xe9,2\n",
        "a.csv, line 3:",
        "byte 4 of the line (0xe9)",
        "--encoding latin-1",
    ),
    ("a.csv", GOOD.encode("utf-16"), "a.csv, line 1:", "not utf-8", "--encoding utf-16"),
    ("a.csv", gzip.compress(GOOD.encode(), mtime=0), "a.csv, line", "packed by gzip", "end its name in .gz"),
    ("a.csv.gz", gzip.compress(GOOD.encode(), mtime=0)[:-12], "a.csv.gz:", "cut short", "copy it again"),
    ("a.csv.gz", GOOD, "a.csv.gz:", "not a gzip file", "copy it again"),
    (
        "a.jsonl",
        '{"text": "x", "label": 1}\n{"text": "y",\n',
        "a.jsonl, line 2:",
        "not valid JSON",
        "one object on each",
    ),
    ("a.jsonl", '["x", 1]\n', "a.jsonl, row 1:", "not a JSON object", "write one on each line"),
    ("a.jsonl", "[" * 100_000, "a.jsonl, line 1:", "nested too deeply", "one flat object"),
    (
        "a.jsonl",
        '{"text": "x", "Label": 1}\n',
        "a.jsonl, line 1:",
        "no column 'label'",
        "did you mean 'Label'?",
    ),
    ("a.jsonl", '\n{"text": null, "label": 1}\n', "a.jsonl, line 2:", "'text' is null", "remove the row"),
    ("a.jsonl", '{"text": "x", "label": NaN}\n', "a.jsonl, line 1:", "'label' is null", "remove the row"),
    ("a.jsonl", '{"text": ["x"], "label": 1}\n', "a.jsonl, line 1:", "holds a list", "text or a number"),
    ("a.jsonl", '{"text": "\\ud83d", "label": 1}\n', "a.jsonl, line 1:", "surrogate", "remove it"),
    ("a.parquet", "text,label\n", "a.parquet:", "not readable as parquet", "fetch it again"),
    ("a.parquet", "", "a.parquet:", "not readable as parquet", "fetch it again"),
    ("a.xlsx", "PK", "a.xlsx:", "not read", ".csv, .tsv, .jsonl"),
    ("a.parquet.gz", "", "a.parquet.gz:", "not read", "each but .parquet also .gz"),
]


@pytest.mark.parametrize(("name", "content", "where", "what", "way_out"), BAD_FILES)
def test_a_bad_file_is_told_in_one_line_with_row_and_way_out(tmp_path, name, content, where, what, way_out):
    message = fault_of(read_rows, plant(tmp_path, name, content), COLUMNS)
    assert message.startswith(where)
    assert what in message
    assert way_out in message


@pytest.mark.parametrize(
    ("table", "where", "what"),
    [
        ({"text": ["x", None], "label": [1, 2]}, "a.parquet, row 2:", "'text' is null"),
        ({"text": ["x", "y"], "label": [1.0, float("nan")]}, "a.parquet, row 2:", "'label' is null"),
        ({"text": [["x"], ["y"]], "label": [1, 2]}, "a.parquet, row 1:", "holds a list"),
        ({"text": [b"x", b"y"], "label": [1, 2]}, "a.parquet, row 1:", "holds a bytes"),
        ({"text": ["x", "y"], "Label": [1, 2]}, "a.parquet:", "did you mean 'Label'?"),
        (
            {"text": pyarrow.array([], pyarrow.string()), "label": pyarrow.array([], pyarrow.int64())},
            "a.parquet:",
            "no rows",
        ),
    ],
)
def test_a_bad_parquet_cell_is_named_by_its_row(tmp_path, table, where, what):
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    message = fault_of(read_rows, tmp_path / "a.parquet", COLUMNS)
    assert message.startswith(where)
    assert what in message


def test_an_absent_file_is_answered_with_the_nearest_names(tmp_path):
    plant(tmp_path, "train.csv", GOOD)
    assert "no such file or folder; did you mean 'train.csv'?" in fault_of(read_rows, tmp_path / "trian.csv", COLUMNS)
    assert "does not exist" in fault_of(read_rows, tmp_path / "nowhere" / "a.csv", COLUMNS)
    assert "name too long" in fault_of(read_rows, tmp_path / ("x" * 300), COLUMNS)
    assert "did you mean 'train.csv'?" in fault_of(digest_by_part, DataSpec(path=str(tmp_path / "trian.csv")))


def test_a_folder_without_class_folders_is_answered_with_its_files(tmp_path):
    assert "LABEL/NAME with NAME ending in .txt" in fault_of(read_rows, tmp_path, COLUMNS)
    plant(tmp_path, "train.csv", GOOD)
    assert "name one of its files: train.csv" in fault_of(read_rows, tmp_path, COLUMNS)


def test_a_bad_file_in_a_class_folder_is_named_with_its_folder(tmp_path):
    (tmp_path / "sports").mkdir()
    plant(tmp_path / "sports", "1.txt", b"fine\n\xa35\n")
    message = fault_of(read_rows, tmp_path, COLUMNS)
    assert message.startswith("sports/1.txt, line 2: byte 1 of the line (0xa3) is not utf-8")
    assert "--encoding latin-1" in message


def test_a_folder_has_no_other_columns_than_text_and_label(tmp_path):
    (tmp_path / "a").mkdir()
    plant(tmp_path / "a", "1.txt", "x")
    assert "no column 'body'; choose one of: label, text" in fault_of(read_rows, tmp_path, ["body", "label"])


# --- what is wrong with the data rather than with the file ----------------------------------------


def spec_of(folder, train=GOOD, validation=None, test=None, **options):
    files = {"path": train, "validation": validation, "test": test}
    names = {"path": "train.csv", "validation": "validation.csv", "test": "test.csv"}
    given = {k: str(plant(folder, names[k], content)) for k, content in files.items() if content is not None}
    return DataSpec(**given, **options)


@pytest.mark.parametrize("blank", ["", "  ", '"\n"', "\u00a0"])
def test_an_empty_text_is_named_by_its_row(tmp_path, blank):
    message = fault_of(load_labelled_texts, spec_of(tmp_path, f"text,label\nx,a\n{blank},b\n"))
    assert message == "train.csv, line 3: column 'text' is empty; fill it in or remove the row"


def test_an_empty_label_and_an_empty_second_text_are_named_by_their_rows(tmp_path):
    message = fault_of(load_labelled_texts, spec_of(tmp_path, GOOD, test="text,label\nx,\n"))
    assert message.startswith("test.csv, line 2: column 'label' is empty")
    pairs = spec_of(tmp_path, "text,pair,label\nx,y,a\nx,,b\n", text_pair="pair")
    assert fault_of(load_labelled_texts, pairs).startswith("train.csv, line 3: column 'pair' is empty")


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_label_that_train_lacks_is_named_by_file_and_row(tmp_path, part):
    message = fault_of(load_labelled_texts, spec_of(tmp_path, **{part: "text,label\nx,a\ny,B\n"}))
    assert message.startswith(f"{part}.csv, line 3: no training example has the label 'B': correct it")
    assert "choose one of: a, b" in message


@pytest.mark.parametrize("label", ["a", "-1"])
def test_one_class_is_refused_and_so_are_labels_that_are_all_masked(tmp_path, label):
    message = fault_of(load_labelled_texts, spec_of(tmp_path, f"text,label\nx,{label}\ny,{label}\n"))
    assert f"train.csv: all 2 examples have the one label {label!r}" in message
    assert "check the column 'label' or add examples of another label" in message


def test_a_column_that_is_no_label_is_recognised_by_its_many_values(tmp_path):
    rows = "".join(f"text {i},id{i}\n" for i in range(50))
    message = fault_of(load_labelled_texts, spec_of(tmp_path, "text,label\n" + rows))
    assert "50 examples of 50 labels are too few to cut a test part from" in message
    assert "name a test file, or check the column 'label'" in message


def test_the_same_file_as_train_and_test_is_refused(tmp_path):
    message = fault_of(load_labelled_texts, spec_of(tmp_path, test=GOOD))
    assert "every training example of label 'a' is also in the validation or test file" in message


def test_the_same_file_as_validation_and_test_is_refused(tmp_path):
    message = fault_of(load_labelled_texts, spec_of(tmp_path, validation="text,label\nx,a\n", test="text,label\nx,a\n"))
    assert message == "validation: all of its texts are in test too; give two different files"


def test_one_column_cannot_be_two_things(tmp_path):
    with pytest.raises(SpecError, match="column 'text' is asked for as two of text, text_pair and label"):
        load_labelled_texts(spec_of(tmp_path, text_pair="text"))


def test_sizes_that_leave_nothing_to_train_on_are_refused(tmp_path):
    with pytest.raises(SpecError, match="leave nothing to train on; together they must be below 1"):
        load_labelled_texts(spec_of(tmp_path, validation_size=0.5, test_size=0.5))


# --- damage at random -----------------------------------------------------------------------------


def damaged(content: bytes, generator: random.Random) -> bytes:
    """`content` with some bytes changed, put in or left out."""
    damage = bytearray(content)
    for _ in range(generator.choice([1, 2, 5])):
        at = generator.randrange(len(damage))
        length = generator.choice([0, 1, 8])
        damage[at : at + length] = bytes(generator.choices(b'",\n\r\t{}\\\0\xe9aA', k=generator.choice([0, 1, 2])))
    return bytes(damage)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.csv.gz", "a.parquet"])
def test_a_file_damaged_at_random_is_read_or_refused_in_one_line(tmp_path, name):
    lines = [(f'"te, xt" é {i}', i % 3) for i in range(20)]
    if name == "a.parquet":
        table = {"text": [text for text, _ in lines], "label": [label for _, label in lines]}
        parquet.write_table(pyarrow.table(table), tmp_path / name)
        content = (tmp_path / name).read_bytes()
    elif name == "a.jsonl":
        content = "".join(f'{{"text": "x\\u00e9 {i}", "label": {k}}}\n' for i, (_, k) in enumerate(lines)).encode()
    else:
        separator = "\t" if name == "a.tsv" else ","
        content = (
            f"text{separator}label\n".encode()
            + "".join(f'"a ""q"" é, {i}"{separator}{k}\n' for i, (_, k) in enumerate(lines)).encode()
        )
        content = gzip.compress(content, mtime=0) if name.endswith(".gz") else content
    assert len(read_rows(plant(tmp_path, name, content), COLUMNS)) == 20
    generator = random.Random(f"damage|{name}")
    refusals = []
    for _ in range(200):
        path = plant(tmp_path, name, damaged(content, generator))
        try:
            assert read_rows(path, COLUMNS)
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) > 20
    assert all(message.startswith(name) and "\n" not in message for message in refusals)
