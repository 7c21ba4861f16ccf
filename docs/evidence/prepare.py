"""The benchmark files as their makers publish them, rewritten as csv for the specs beside this file.

    python docs/evidence/prepare.py SOURCE DEST

SOURCE holds trec/train_5500.label, trec/TREC_10.label, mrpc/msr_paraphrase_train.txt and mrpc/msr_paraphrase_test.txt
(each may be gzipped). CIFAR-10 is read as it is, from parquet files of images and labels.
"""

from __future__ import annotations

import csv
import gzip
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path


def trec(path: Path) -> Iterable[Sequence[str]]:
    """Question and coarse label ('NUM' of 'NUM:date'). Latin-1; a stray byte 0xF0 stands where a blank should."""
    for line in lines(path, "latin-1"):
        label, _, text = line.replace("\xf0", " ").partition(" ")
        yield text, label.partition(":")[0]


def mrpc(path: Path) -> Iterable[Sequence[str]]:
    """Two sentences and whether one says what the other says. Tabs part the fields and quotes mean nothing."""
    for line in list(lines(path, "utf-8-sig"))[1:]:
        label, _, _, text, text_pair = line.split("\t")
        yield text, text_pair, label


def lines(path: Path, encoding: str) -> Iterable[str]:
    packed = path.with_name(path.name + ".gz")
    opener = gzip.open if packed.exists() else open
    with opener(packed if packed.exists() else path, "rt", encoding=encoding, newline="\n") as file:
        for line in file:
            yield line.rstrip("\r\n")


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def main(source: Path, dest: Path) -> None:
    dest.mkdir(parents=True, exist_ok=True)
    for part, name in (("train", "train_5500.label"), ("test", "TREC_10.label")):
        write(dest / f"trec_{part}.csv", ["text", "label"], trec(source / "trec" / name))
        name = f"msr_paraphrase_{part}.txt"
        write(dest / f"mrpc_{part}.csv", ["text", "text_pair", "label"], mrpc(source / "mrpc" / name))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
