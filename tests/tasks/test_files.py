"""What is read, and how, from each file format. Faults are in tests/faults/test_bad_data.py."""

from __future__ import annotations

import csv
import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet

from tunewise.errors import SpecError
from tunewise.tasks.files import Row, data_files, read_rows

COLUMNS = ["text", "label"]
PLAIN = [("one fish", "a"), ("two, fish", "b"), ('a "red" fish', "a"), ("ein Fischbrötchen", "b")]


def write(path, text, encoding="utf-8"):
    content = text.encode(encoding)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_table(path, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([COLUMNS, *rows])
    return path


def read(path, columns=COLUMNS, **options):
    return [tuple(row.values[c] for c in columns) for row in read_rows(path, columns, **options)]


# --- formats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "ndjson"])
def test_every_text_format_gives_the_same_rows_packed_or_not(tmp_path, kind, packed):
    if kind.endswith("sv"):
        source = write_table(tmp_path / "plain", PLAIN, delimiter="," if kind == "csv" else "\t").read_bytes()
    else:
        lines = [json.dumps({"text": text, "label": label}) for text, label in PLAIN]
        source = "\n".join(lines).encode()
    path = write(tmp_path / f"train.{kind}{packed}", source.decode())
    assert read(path) == PLAIN
    assert [row.where for row in read_rows(path, COLUMNS)] == [
        f"train.{kind}{packed}, line {n}" for n in (range(2, 6) if kind.endswith("sv") else range(1, 5))
    ]


def test_parquet_gives_the_same_rows_and_counts_them_from_one(tmp_path):
    table = {"label": [label for _, label in PLAIN], "other": [None] * 4, "text": [text for text, _ in PLAIN]}
    parquet.write_table(pyarrow.table(table), tmp_path / "train.parquet")
    assert read(tmp_path / "train.parquet") == PLAIN
    assert read_rows(tmp_path / "train.parquet", COLUMNS)[2].where == "train.parquet, row 3"


def test_a_folder_of_class_folders_is_read_in_the_order_of_names(tmp_path):
    for name in (
        "b/2.txt",
        "b/10.txt",
        "a/9.txt",
        "a/.hidden.txt",
        "a/notes.md",
        ".git/x.txt",
        "empty/x.bin",
    ):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(f"text of {name}")
    (tmp_path / "data" / "README.txt").write_text("no class")
    assert read_rows(tmp_path / "data", COLUMNS) == [
        Row({"text": "text of a/9.txt", "label": "a"}, "a/9.txt"),
        Row({"text": "text of b/10.txt", "label": "b"}, "b/10.txt"),
        Row({"text": "text of b/2.txt", "label": "b"}, "b/2.txt"),
    ]
    assert [file.name for file in data_files(tmp_path / "data")] == ["9.txt", "10.txt", "2.txt"]


def test_a_suffix_may_be_in_capitals(tmp_path):
    assert read(write(tmp_path / "TRAIN.CSV", "text,label\nx,1\n")) == [("x", "1")]


def test_only_the_wanted_columns_are_kept_in_any_order(tmp_path):
    path = write(tmp_path / "a.csv", "id,label,text\n7,a,x\n")
    assert read_rows(path, COLUMNS) == [Row({"text": "x", "label": "a"}, "a.csv, line 2")]


# --- encodings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_byte_order_mark_is_swallowed(tmp_path, suffix):
    text = "text,label\nx,1\n" if suffix == "csv" else '{"text": "x", "label": 1}\n'
    for encoding in ("utf-8", "utf-8,latin-1", "latin-1"):
        assert read(write(tmp_path / f"a.{suffix}", text, "utf-8-sig"), encoding=encoding) == [("x", "1")]
    for encoding in ("utf-16", "utf-16-le"):
        path = write(tmp_path / f"a.{suffix}", "\ufeff" + text, "utf-16-le")
        assert read(path, encoding=encoding) == [("x", "1")]


def test_encodings_are_tried_in_turn_for_each_file(tmp_path):
    for name, encoding in (("utf", "utf-8"), ("latin", "latin-1")):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "1.txt", "£5", encoding)
    assert read(tmp_path, encoding="utf-8,latin-1") == [("£5", "latin"), ("£5", "utf")]


@pytest.mark.parametrize("encoding", ["utf9", "base64", "utf-8,klingon", " , "])
def test_an_unknown_encoding_is_a_spec_error(tmp_path, encoding):
    with pytest.raises(SpecError, match="utf-8"):
        read_rows(write(tmp_path / "a.csv", "text,label\nx,1\n"), COLUMNS, encoding=encoding)


# --- csv and tsv ----------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_record_is_named_by_the_line_on_which_it_starts(tmp_path, end):
    text = end.join(["text,label", '"over', "three", 'lines",a', "", "plain,b", "", ""])
    rows = read_rows(write(tmp_path / "a.csv", text), COLUMNS)
    assert [row.where for row in rows] == ["a.csv, line 2", "a.csv, line 6"]
    assert rows[0].values["text"] == end.join(["over", "three", "lines"])


def test_separators_of_lines_that_editors_do_not_count_stay_inside_the_text(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\nx\u2028y\x0bz\x85,1\nlast,2\n")
    assert [row.where for row in read_rows(path, COLUMNS)] == ["a.csv, line 2", "a.csv, line 3"]


def test_a_field_may_be_larger_than_the_limit_of_the_csv_module_which_stays_as_it_was(tmp_path):
    before = csv.field_size_limit(1_000)
    try:
        long = "word " * 100_000
        assert read(write(tmp_path / "a.csv", f"text,label\n{long},1\n")) == [(long, "1")]
        assert csv.field_size_limit() == 1_000
    finally:
        csv.field_size_limit(before)


def test_a_raw_tsv_keeps_its_quotes(tmp_path):
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"Yes" is a word\t1\n5" disk\t2\n')
    assert read(path) == [('"Yes" is a word', "1"), ('5" disk', "2")]


def test_a_stray_quote_in_a_raw_tsv_swallows_no_rows(tmp_path):
    path = write(tmp_path / "a.tsv", 'label\ttext\n1\t"open\n2\tmiddle\n3\tclosed"\n')
    assert read(path) == [('"open', "1"), ("middle", "2"), ('closed"', "3")]


def test_a_quoted_tsv_may_hold_tabs_and_line_ends(tmp_path):
    rows = [("a\ttab", "1"), ("two\nlines", "2"), ('a "quote"', "3")]
    assert read(write_table(tmp_path / "a.tsv", rows, delimiter="\t")) == rows


# --- values ---------------------------------------------------------------------------------------


def test_numbers_and_truth_values_of_json_become_text_as_written(tmp_path):
    numbers = ["3", "-1.50", "1e3", "9" * 5000, "true", "false"]
    path = write(tmp_path / "a.jsonl", "\n\n".join(f'{{"text": "x", "label": {n}}}' for n in numbers))
    assert [label for _, label in read(path)] == numbers
    assert read_rows(path, COLUMNS)[1].where == "a.jsonl, line 3"


@pytest.mark.parametrize(
    ("cells", "texts"),
    [
        (pyarrow.array([2, 10]), ["2", "10"]),
        (pyarrow.array([0.5, 1.0]), ["0.5", "1.0"]),
        (pyarrow.array([True, False]), ["true", "false"]),
        (pyarrow.array(["x", "y"]).dictionary_encode(), ["x", "y"]),
        (pyarrow.array(["x", "y"], pyarrow.large_string()), ["x", "y"]),
    ],
)
def test_cells_of_parquet_become_text(tmp_path, cells, texts):
    parquet.write_table(pyarrow.table({"text": ["t", "u"], "label": cells}), tmp_path / "a.parquet")
    assert [label for _, label in read(tmp_path / "a.parquet")] == texts


# --- real files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "columns", "count"),
    [
        ("clutrr/test.csv.gz", ["clean_story", "query", "target_text"], 1_048),
        ("paws/labeled_final_test.csv.gz", ["sentence1", "sentence2", "label"], 8_000),
        ("e2e/devset.csv.gz", ["mr", "ref"], 4_672),
        ("folio/folio-train.jsonl.gz", ["conclusion", "label"], 1_004),
    ],
)
def test_benchmark_files_have_their_published_number_of_rows(shared_data, name, columns, count):
    assert len(read_rows(shared_data / name, columns)) == count


def test_a_benchmark_tsv_full_of_quotes_has_its_published_number_of_rows(shared_data, tmp_path):
    source = gzip.decompress((shared_data / "mrpc" / "msr_paraphrase_train.txt.gz").read_bytes())
    (tmp_path / "train.tsv").write_bytes(source)
    rows = read_rows(tmp_path / "train.tsv", ["#1 String", "#2 String", "Quality"])
    assert len(rows) == 4_076
    assert '"the witness"' in rows[0].values["#1 String"]
