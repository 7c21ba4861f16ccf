"""Disjoint training, validation and test data: repeats, overlaps, parts cut from train, subsamples.

All random draws depend on `DataSpec.split_seed` alone, never on the seed of a run, so that all methods and seeds see
the same splits. Only the key, label and stratum of an example matter: a text, a pair, an image or a question.
"""

from __future__ import annotations

import heapq
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tunewise.errors import DataError, SpecError
from tunewise.locate import resolve
from tunewise.spec import DataSpec
from tunewise.tasks.files import part_paths
from tunewise.text_format import pluralize

PARTS = ("train", "validation", "test")
_SHARES = {"validation": 0.15, "test": 0.2}
"""Of train, for parts without a file, where no share is given."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Record:
    """One example before it is encoded."""

    key: Hashable
    """What a model sees of it (a text, a pair, the digest of an image), so equal keys are one input."""
    label: str
    stratum: str
    """What subsamples keep the shares of: the label, or "" for all."""
    where: str
    content: Any = None
    """What the task encodes."""


@dataclass(frozen=True, slots=True)
class Splits:
    """Disjoint train, validation and test (no key is in two), each in the order of its file, and sentences on what was
    dropped, moved or cut."""

    parts: dict[str, list[Record]]
    notes: list[str]


def read_parts(spec: DataSpec, read: Callable[[Path], list[Item]]) -> dict[str, list[Item]]:
    """The records of each part that has a file, train first. Raises `SpecError` where the parts to cut leave nothing to
    train on."""
    if spec.validation is None and spec.test is None and _share(spec, "validation") + _share(spec, "test") >= 1:
        raise SpecError(
            f"validation_size {spec.validation_size} and test_size {spec.test_size} leave nothing to train on; "
            "together they must be below 1"
        )
    return {part: read(resolve(path)) for part, path in part_paths(spec).items()}


def _share(spec: DataSpec, part: str) -> float:
    """The share of train that becomes a part without a file."""
    size = getattr(spec, f"{part}_size")
    return size if isinstance(size, float) else _SHARES[part]


def make_splits(
    spec: DataSpec, records: Mapping[str, list[Record]], *, noun: str = "text", many_targets: bool = False
) -> Splits:
    """The three parts of a data set; `records` has train, and those of validation and test that have a file.

    Of train, exact repeats are dropped (one input with two labels stays), and so is every input that validation
    or test has too; an input in validation and test stays in test alone. Parts without a file are then cut from
    train, stratified; a stratum's last example, and inputs with two labels, stay in train. With `many_targets` an input
    usually has several (a prompt its completions), and whole inputs are cut. Sizes are stratified subsamples of the
    parts: rows never move an example to another part.

    Raises `DataError` where too few examples are left to cut a part from, or a stratum is gone from train.
    """
    splitter = _Splitter(spec, noun)
    train, evaluation = records["train"], {part: records[part] for part in records if part != "train"}
    strata = {record.stratum for record in train}
    train = splitter.drop_repeats(train)
    ambiguous: set[Hashable] = set()
    if not many_targets:
        ambiguous = splitter.inputs_with_two_labels(train)
    train, evaluation = splitter.drop_overlaps(train, evaluation)
    splitter.refuse_lost_strata(train, strata)
    train, cut = splitter.cut_inputs(train) if many_targets else splitter.cut_examples(train, ambiguous)
    parts = {"train": train, **evaluation, **cut}
    return Splits({part: splitter.subsample(parts[part], part, part in cut) for part in PARTS}, splitter.notes)


def number_aware(label: str) -> tuple[bool, float, list[tuple[int, str]], str]:
    """Sorting key: numbers first, by value; then names, those with numbers in them as 'top2', 'top10'."""
    if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", label):
        return (False, float(label), [], label)
    # The split puts numbers at odd places. Of two without leading zeros the longer is the larger: no int() is
    # needed, which refuses thousands of digits.
    pieces = [p.lstrip("0") if i % 2 else p for i, p in enumerate(re.split("([0-9]+)", label))]
    return (True, 0.0, [(len(p) if i % 2 else 0, p) for i, p in enumerate(pieces)], label)


class _Splitter:
    """The steps of `make_splits`; each adds its sentences to `notes`."""

    def __init__(self, spec: DataSpec, noun: str) -> None:
        self.spec = spec
        self.noun = noun
        self.notes: list[str] = []

    # --- repeats and overlaps ---------------------------------------------------------------------

    def drop_repeats(self, train: Sequence[Record]) -> list[Record]:
        first: dict[tuple[Hashable, str], Record] = {}
        for record in train:
            first.setdefault((record.key, record.label), record)
        if len(first) < len(train):
            self.notes.append(f"train: {pluralize(len(train) - len(first), 'exact duplicate')} dropped.")
        return list(first.values())

    def inputs_with_two_labels(self, train: Sequence[Record]) -> set[Hashable]:
        """Inputs that occur under more than one label, in a `train` without exact repeats."""
        counts = Counter(record.key for record in train)
        repeated = [record for record in train if counts[record.key] > 1]
        ambiguous = {record.key for record in repeated}
        if ambiguous:
            example = " and ".join(record.where for record in repeated if record.key == repeated[0].key)
            what = pluralize(len(ambiguous), self.noun)
            self.notes.append(f"train: {what} with more than one label kept ({example}).")
        return ambiguous

    def drop_overlaps(
        self, train: list[Record], evaluation: dict[str, list[Record]]
    ) -> tuple[list[Record], dict[str, list[Record]]]:
        """Each input in one part only, test before validation before train, whatever its labels."""
        if "validation" in evaluation and "test" in evaluation:
            rest = self._without(evaluation["validation"], evaluation["test"], "validation", "test")
            if not rest:
                raise DataError(f"validation: all of its {self.noun}s are in test too; give two different files")
            evaluation = {**evaluation, "validation": rest}
        for part, records in evaluation.items():
            train = self._without(train, records, "train", part)
        return train, evaluation

    def _without(self, records: list[Record], others: Iterable[Record], part: str, other: str) -> list[Record]:
        keys = {record.key for record in others}
        rest = [record for record in records if record.key not in keys]
        if len(rest) < len(records):
            what = pluralize(len(records) - len(rest), "example")
            self.notes.append(f"{part}: {what} removed, since the same {self.noun} is in {other}.")
        return rest

    def refuse_lost_strata(self, train: Iterable[Record], strata: set[str]) -> None:
        lost = sorted(strata - {record.stratum for record in train}, key=number_aware)
        if lost:
            of = f" of label {lost[0]!r}" if lost[0] else ""
            raise DataError(
                f"{self.spec.path}: every training example{of} is also in the validation or test "
                "file; give training examples that those files do not hold"
            )

    # --- cutting and subsampling ------------------------------------------------------------------

    def _wanted(self, count: int) -> dict[str, int]:
        """How many of `count` training examples each part without a file gets: rows above its share raise it."""
        wanted = {}
        for part in ("test", "validation"):
            if getattr(self.spec, part) is None:
                size = getattr(self.spec, f"{part}_size")
                rows = size if isinstance(size, int) else 1
                wanted[part] = max(rows, round(count * _share(self.spec, part)))
        return wanted

    def cut_examples(
        self, train: list[Record], ambiguous: set[Hashable]
    ) -> tuple[list[Record], dict[str, list[Record]]]:
        """The rest of train, and the parts cut from it; both sizes are of train before the cuts."""
        count, wanted = len(train), self._wanted(len(train))
        by_label = any(record.stratum for record in train)
        spare = sum(_spare(train, ambiguous).values())
        cut = {}
        for part, size in _allot(min(spare, sum(wanted.values())), wanted, most=wanted).items():
            quotas = _allot(size, _counts(train), most=_spare(train, ambiguous))
            cut[part], train = _draw(train, quotas, f"{self.spec.split_seed}|split|{part}", kept_back=ambiguous)
            if not cut[part]:
                of = f" of {pluralize(len(quotas), 'label')}" if by_label else ""
                check = f", or check the column {self.spec.label!r}" if by_label else ""
                raise DataError(
                    f"{self.spec.path}: {pluralize(count, 'example')}{of} are too few to cut a {part} part from; "
                    f"name a {part} file{check}"
                )
            how = "stratified by label, " if by_label else ""
            self._note_draw(f"{part}: no file given;", cut[part], count, "cut from train", how)
        return train, cut

    def cut_inputs(self, train: list[Record]) -> tuple[list[Record], dict[str, list[Record]]]:
        """As `cut_examples`, for inputs with several targets: inputs are drawn until the part is large enough."""
        count, cut = len(train), {}
        for part, wanted in self._wanted(count).items():
            sizes = Counter(record.key for record in train)
            taken: set[Hashable] = set()
            for key in shuffled(list(sizes), f"{self.spec.split_seed}|split|{part}")[:-1]:
                if wanted > 0:
                    taken.add(key)
                    wanted -= sizes[key]
            if not taken:
                raise DataError(
                    f"{self.spec.path}: all {count:,} examples have one and the same {self.noun}, so no {part} part "
                    f"can be cut; name a {part} file"
                )
            cut[part] = [record for record in train if record.key in taken]
            train = [record for record in train if record.key not in taken]
            how = f"{pluralize(len(taken), self.noun)} with all of their targets, "
            self._note_draw(f"{part}: no file given;", cut[part], count, "cut from train", how)
        return train, cut

    def _note_draw(self, start: str, drawn: Sequence[Record], count: int, what: str, how: str) -> None:
        seed = self.spec.split_seed
        self.notes.append(f"{start} {len(drawn):,} of {count:,} examples {what} ({how}split seed {seed}).")

    def subsample(self, records: list[Record], part: str, cut: bool) -> list[Record]:
        """As many examples as the spec asks of this part, stratified; every stratum once in train where that fits."""
        size = getattr(self.spec, f"{part}_size")
        if isinstance(size, float):
            size = None if cut else max(1, round(size * len(records)))
        if size is None or size == len(records):
            return records
        if size > len(records):
            self.notes.append(f"{part}: {size:,} examples asked for, all {len(records):,} there are used.")
            return records
        counts = _counts(records)
        least = 1 if part == "train" and size >= len(counts) else 0
        quotas = _allot(size, counts, most=counts, least=least)
        drawn, _ = _draw(records, quotas, f"{self.spec.split_seed}|subsample|{part}")
        self._note_draw(f"{part}:", drawn, len(records), "kept", "stratified by label, " if any(counts) else "")
        return drawn


# --- draws ----------------------------------------------------------------------------------------


def _spare(train: Sequence[Record], ambiguous: set[Hashable]) -> dict[str, int]:
    """How many examples of each stratum can be cut: at least one is left to train on, and so are inputs with two
    labels, which would otherwise be trained on under one label and scored under the other."""
    free = Counter(record.stratum for record in train if record.key not in ambiguous)
    return {stratum: min(free[stratum], count - 1) for stratum, count in _counts(train).items()}


def _counts(records: Iterable[Record]) -> dict[str, int]:
    """Examples of each stratum, in the order of labels."""
    counts = Counter(record.stratum for record in records)
    return {stratum: counts[stratum] for stratum in sorted(counts, key=number_aware)}


def _allot(total: int, counts: Mapping[str, int], *, most: Mapping[str, int], least: int = 0) -> dict[str, int]:
    """`total` in shares proportional to `counts`, whole numbers within bounds by largest remainder; of equal remainders
    the earlier key comes first. The shares sum to `total` where the bounds allow it."""
    everything = sum(counts.values())
    exact = {key: total * count / everything for key, count in counts.items()}
    shares = {key: min(max(math.floor(exact[key]), least), most[key]) for key in counts}
    missing = total - sum(shares.values())
    step = 1 if missing > 0 else -1
    open_keys = [
        (step * (shares[key] - exact[key]), rank, key)
        for rank, key in enumerate(counts)
        if shares[key] != (most[key] if step > 0 else least)
    ]
    heapq.heapify(open_keys)
    while missing and open_keys:
        _, rank, key = heapq.heappop(open_keys)
        shares[key] += step
        missing -= step
        if shares[key] != (most[key] if step > 0 else least):
            heapq.heappush(open_keys, (step * (shares[key] - exact[key]), rank, key))
    return shares


def _draw(
    records: Sequence[Record], quotas: Mapping[str, int], stream: str, kept_back: Container[Hashable] = ()
) -> tuple[list[Record], list[Record]]:
    """The drawn records and the others, both in their old order; one random stream for each stratum."""
    places: dict[str, list[int]] = {stratum: [] for stratum in quotas}
    for place, record in enumerate(records):
        if record.key not in kept_back:
            places[record.stratum].append(place)
    drawn: set[int] = set()
    for stratum, candidates in places.items():
        drawn.update(shuffled(candidates, f"{stream}|{stratum}")[: quotas[stratum]])
    return (
        [record for place, record in enumerate(records) if place in drawn],
        [record for place, record in enumerate(records) if place not in drawn],
    )


def shuffled(items: Sequence[Item], stream: str) -> list[Item]:
    """The items in an order that depends on `stream` alone, by `random()`, which Python keeps across versions."""
    generator = random.Random(stream)
    drawn = sorted((generator.random(), place) for place in range(len(items)))
    return [items[place] for _, place in drawn]
