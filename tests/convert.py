"""Benchmark files in their own formats, rewritten as csv for the tests."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path

TREC_FILES = {"train": "train_5500.label.gz", "test": "TREC_10.label.gz"}
MRPC_FILES = {"train": "msr_paraphrase_train.txt.gz", "test": "msr_paraphrase_test.txt.gz"}


def trec_csv(shared: Path, folder: Path) -> dict[str, Path]:
    """TREC's questions as text,label: train 5,452 and test 500; `label` is the fine one, 'NUM:date' (50)."""
    return {
        part: _write(folder / f"trec_{part}.csv", ["text", "label"], _trec_rows(shared / "trec" / name))
        for part, name in TREC_FILES.items()
    }


def mrpc_csv(shared: Path, folder: Path) -> dict[str, Path]:
    """MRPC's pairs as text,text_pair,label: train 4,076 and test 1,725; label 1 is a paraphrase."""
    header = ["text", "text_pair", "label"]
    return {
        part: _write(folder / f"mrpc_{part}.csv", header, _mrpc_rows(shared / "mrpc" / name))
        for part, name in MRPC_FILES.items()
    }


def _trec_rows(path: Path) -> Iterable[Sequence[str]]:
    with gzip.open(path, "rt", encoding="latin-1") as file:
        for line in file:
            # One question has a stray byte 0xF0 between two words, where loaders put a blank.
            label, _, text = line.rstrip("\n").replace("\xf0", " ").partition(" ")
            yield text, label


def _mrpc_rows(path: Path) -> Iterable[Sequence[str]]:
    with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
        next(file)
        for line in file:
            label, _, _, text, text_pair = line.rstrip("\r\n").split("\t")
            yield text, text_pair, label


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def stsb_csv(shared: Path, folder: Path) -> dict[str, Path]:
    """STS-B's pairs as text,text_pair,label: train 5,749, validation 1,500, test 1,379; label from 0.0 to 5.0."""
    names = {"train": "sts-train.csv.gz", "validation": "sts-dev.csv.gz", "test": "sts-test.csv.gz"}
    rows = {part: [line.split("\t") for line in _lines(shared / "stsb" / name)] for part, name in names.items()}
    header = ["text", "text_pair", "label"]
    return {
        part: _write(folder / f"stsb_{part}.csv", header, [[row[5], row[6], row[4]] for row in found])
        for part, found in rows.items()
    }


def cola_csv(shared: Path, folder: Path) -> dict[str, Path]:
    """CoLA's sentences as text,label: train 8,551 and its in-domain dev, 527; label 1 is acceptable."""
    names = {"train": "in_domain_train.tsv.gz", "test": "in_domain_dev.tsv.gz"}
    rows = {part: [line.split("\t") for line in _lines(shared / "cola" / name)] for part, name in names.items()}
    return {
        part: _write(folder / f"cola_{part}.csv", ["text", "label"], [[row[3], row[1]] for row in found])
        for part, found in rows.items()
    }


def _lines(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().rstrip("\n").split("\n")
