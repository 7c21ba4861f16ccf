"""Readers for labelled texts and pairs in their public forms: MRPC, CoLA, RTE, STS-B, PAWS, TREC.

`read_raw_*` are for the authors' own files, the others for GLUE's or a hub's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tunewise.errors import DataError
from tunewise.papers.reading import (
    DataParts,
    TextItem,
    find_files,
    items_by_column,
    parts_by_name,
    read_fields,
    read_lines,
    read_table,
    text_of,
)
from tunewise.tasks.files import class_names
from tunewise.text_format import pluralize

_LABELS = ("label", "Quality", "score", "gold_label")
_read_pairs = items_by_column(("sentence1", "#1 String"), _LABELS, ("sentence2", "#2 String"))
read_glue_pairs = parts_by_name(_read_pairs)
read_cola = parts_by_name(items_by_column(("sentence",), _LABELS))


def read_mrpc(folder: Path) -> DataParts | None:
    """The authors' files. GLUE's validation part are the training pairs in `dev_ids.tsv`, where that file exists."""
    train = find_files(folder, r"msr_paraphrase_train\.txt(\.gz)?$")
    test = find_files(folder, r"msr_paraphrase_test\.txt(\.gz)?$")
    if not train or not test:
        return None
    ids = {tuple(cells[:2]) for path in find_files(folder, r"dev_ids\.tsv$") for cells, _ in read_fields(path)}
    parts: dict[str, list[TextItem]] = {"train": [], "test": list(_read_pairs(test[0]))}
    for item, (row, _) in zip(_read_pairs(train[0]), read_table(train[0]), strict=True):
        part = "validation" if (row["#1 ID"], row["#2 ID"]) in ids else "train"
        parts.setdefault(part, []).append(item)
    notes = [f"{len(parts['validation']):,} training pairs are GLUE's validation part."] if ids else []
    return DataParts(parts, notes)


def _acceptability(path: Path) -> Iterator[TextItem]:
    for cells, where in read_fields(path):
        if len(cells) == 4:
            yield TextItem(cells[3], None, cells[1], where)
        elif cells[:2] != ["index", "sentence"]:  # GLUE's test file has two columns and no labels
            yield TextItem(cells[-1], None, None, where)


read_raw_cola = parts_by_name(
    _acceptability,
    train=r"(in_domain_train|(^|/)cola/train)\.tsv(\.gz)?$",
    validation=r"(in_domain_dev|out_of_domain_dev|(^|/)cola/dev)\.tsv(\.gz)?$",
    test=r"(^|/)cola/test\.tsv(\.gz)?$",
)
"""Without a header; the in-domain and out-of-domain dev files are one part."""


def _similarity(path: Path) -> Iterator[TextItem]:
    for cells, where in read_fields(path):
        if len(cells) < 7:
            raise DataError(f"{where}: {len(cells)} fields where 7 or more are expected; fix the line")
        yield TextItem(cells[5], cells[6], cells[4], where)


_STSB = {"train": "train", "validation": "dev", "test": "test"}
read_raw_stsb = parts_by_name(_similarity, **{part: rf"sts-{name}\.csv(\.gz)?$" for part, name in _STSB.items()})
"""Tab-separated although they are named .csv, without a header."""


def read_paws_without_train(folder: Path) -> DataParts | None:
    """Without the training part, the dev part is used for training. It is in lower case, so test is lower-cased too."""
    dev = find_files(folder, r"dev_lowercased\.csv(\.gz)?$")
    test = find_files(folder, r"labeled_final_test\.csv(\.gz)?$")
    if not dev or not test or find_files(folder, r"labeled_final_train"):
        return None
    items = [replace(i, text=i.text.lower(), pair=(i.pair or "").lower()) for i in _read_pairs(test[0])]
    note = (
        "The training part is missing: the validation part, in lower case, is used for training, and test is "
        "lower-cased too. Scores are not the paper's."
    )
    return DataParts({"train": list(_read_pairs(dev[0])), "test": items}, [note])


_QUESTIONS = {"train": r"train_5500\.label(\.gz)?$", "validation": r"$^", "test": r"trec_10\.label(\.gz)?$"}


def read_raw_trec(folder: Path) -> DataParts | None:
    """Latin-1, a fine label before each question, and the byte 0xF0 in place of a blank in one question."""
    replaced = 0

    def read(path: Path) -> Iterator[TextItem]:
        nonlocal replaced
        for line, where in read_lines(path, "latin-1"):
            label, _, text = line.partition(" ")
            replaced += "\xf0" in text
            yield TextItem(text.replace("\xf0", " "), None, label, where)

    parts = parts_by_name(read, **_QUESTIONS)(folder)
    if parts is not None and replaced:
        count = pluralize(replaced, "question")
        parts.notes.append(f"{count} with the byte 0xF0 (the files are latin-1), which is read as a blank.")
    return parts


def _fine_questions(path: Path) -> Iterator[TextItem]:
    column = "fine_label"
    names = class_names(path, column) if path.suffix == ".parquet" else []
    for row, where in read_table(path):
        label = text_of(row, (column, "label-fine", "label"), where)
        yield TextItem(text_of(row, ("text",), where), None, names[int(label)] if names else label, where)


read_trec = parts_by_name(_fine_questions)
