"""The sets of labelled texts and pairs in their public forms: MRPC, CoLA, RTE, STS-B, PAWS, TREC."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tunewise.errors import DataError
from tunewise.papers.reading import Item, Parts, by_name, class_names, columns, fields, find, lines, said, table
from tunewise.text_format import pluralize

_LABELS = ("label", "Quality", "score", "gold_label")
PAIRS = columns(("sentence1", "#1 String"), _LABELS, ("sentence2", "#2 String"))
glue_pairs = by_name(PAIRS)
"""MRPC, RTE, STS-B and PAWS as GLUE or a hub has them."""


def mrpc(folder: Path) -> Parts | None:
    """The makers' files. GLUE's validation part are the training pairs that `dev_ids.tsv` lists, where it is there."""
    train, test = find(folder, r"msr_paraphrase_train\.txt(\.gz)?$"), find(folder, r"msr_paraphrase_test\.txt(\.gz)?$")
    if not train or not test:
        return None
    ids = {tuple(cells[:2]) for one in find(folder, r"dev_ids\.tsv$") for cells, _ in fields(one)}
    parts: dict[str, list[Item]] = {"train": [], "test": list(PAIRS(test[0]))}
    for item, (row, _) in zip(PAIRS(train[0]), table(train[0]), strict=True):
        part = "validation" if (row["#1 ID"], row["#2 ID"]) in ids else "train"
        parts.setdefault(part, []).append(item)
    notes = [f"{len(parts['validation']):,} training pairs are GLUE's validation part."] if ids else []
    return Parts(parts, notes)


def _acceptability(path: Path) -> Iterator[Item]:
    for cells, where in fields(path):
        if len(cells) == 4:
            yield Item(cells[3], None, cells[1], where)
        elif cells[:2] != ["index", "sentence"]:  # of GLUE's test file: two columns, and no labels
            yield Item(cells[-1], None, None, where)


cola_raw = by_name(
    _acceptability,
    train=r"(in_domain_train|(^|/)cola/train)\.tsv(\.gz)?$",
    validation=r"(in_domain_dev|out_of_domain_dev|(^|/)cola/dev)\.tsv(\.gz)?$",
    test=r"(^|/)cola/test\.tsv(\.gz)?$",
)
"""The makers' files, or GLUE's: no header, and the in-domain and out-of-domain dev files as one."""
cola = by_name(columns(("sentence",), _LABELS))


def _similarity(path: Path) -> Iterator[Item]:
    for cells, where in fields(path):
        if len(cells) < 7:
            raise DataError(f"{where}: {len(cells)} fields where 7 or more are expected; mend the line")
        yield Item(cells[5], cells[6], cells[4], where)


stsb_raw = by_name(
    _similarity,
    **{
        part: rf"sts-{short}\.csv(\.gz)?$"
        for part, short in (("train", "train"), ("validation", "dev"), ("test", "test"))
    },
)
"""The makers' files: parted by tabs whatever their name says, without a header."""


def paws_without_train(folder: Path) -> Parts | None:
    """Where the training part is missing, the dev part is trained on: in small letters, and then test as well, so that
    case does not tell the parts apart."""
    dev, test = find(folder, r"dev_lowercased\.csv(\.gz)?$"), find(folder, r"labeled_final_test\.csv(\.gz)?$")
    if not dev or not test or find(folder, r"labeled_final_train"):
        return None
    items = [replace(i, text=i.text.lower(), pair=(i.pair or "").lower()) for i in PAIRS(test[0])]
    note = (
        "The training part is not here: the validation part, in small letters, is trained on instead, and test is put "
        "into small letters too. Scores are not the paper's."
    )
    return Parts({"train": list(PAIRS(dev[0])), "test": items}, [note])


_QUESTIONS = {"train": r"train_5500\.label(\.gz)?$", "validation": r"$^", "test": r"trec_10\.label(\.gz)?$"}


def trec_raw(folder: Path) -> Parts | None:
    """The makers' files: latin-1, a fine label before each question, and one byte 0xF0 where a blank should be."""
    strange = 0

    def read(path: Path) -> Iterator[Item]:
        nonlocal strange
        for line, where in lines(path, "latin-1"):
            label, _, text = line.partition(" ")
            strange += "\xf0" in text
            yield Item(text.replace("\xf0", " "), None, label, where)

    parts = by_name(read, **_QUESTIONS)(folder)
    if parts is not None and strange:
        parts.notes.append(
            f"{pluralize(strange, 'question')} with the byte 0xF0 (the files are latin-1), which is read as a blank."
        )
    return parts


def _fine_questions(path: Path) -> Iterator[Item]:
    column = "fine_label"
    names = class_names(path, column) if path.suffix == ".parquet" else []
    for row, where in table(path):
        label = said(row, (column, "label-fine", "label"), where)
        yield Item(said(row, ("text",), where), None, names[int(label)] if names else label, where)


trec = by_name(_fine_questions)
