"""Examples parted for a fair comparison: nothing that is trained on is evaluated on.

    drop repeats -> take overlaps out of train -> cut the parts that have no file -> subsample

Everything is decided by the examples and `DataSpec.split_seed`, never by a run's seed, so that all methods and
seeds see the same splits. What was dropped, moved or cut is said in `Splits.notes`. It is all one whether an example
is a text, a pair, an image or a question: only its key, its label and its stratum are looked at.
"""

from __future__ import annotations

import heapq
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunewise.errors import DataError, SpecError
from tunewise.spec import DataSpec
from tunewise.tasks.files import part_paths
from tunewise.text_format import join_names, pluralize

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Record:
    """One example, as far as splitting looks at it.

    `key` is what a model sees of it (a text, a pair, the digest of an image): equal keys are one input. `label` is its
    target as text, `stratum` what subsamples and cuts keep the shares of (the label, or "" for all alike), `where`
    its place in a file, `content` whatever the task makes of it later.
    """

    key: Hashable
    label: str
    stratum: str
    where: str
    content: Any = None


@dataclass(frozen=True, slots=True)
class Splits:
    """Disjoint train, validation and test (no key is in two), each in the order of its file, and sentences on what was
    done."""

    parts: dict[str, list[Record]]
    notes: list[str]


def read_parts(spec: DataSpec, read: Callable[[str], list[Record]]) -> dict[str, list[Record]]:
    """The records of each part that has a file, train first."""
    check_fractions(spec)
    return {part: read(path) for part, path in part_paths(spec).items()}


def make_splits(
    spec: DataSpec, records: Mapping[str, list[Record]], *, noun: str = "text", many_targets: bool = False
) -> Splits:
    """The three parts of a data set; `records` has train, and those of validation and test that have a file.

    Of train, exact repeats are dropped (one input with two labels stays), and so is every input that validation
    or test has too; an input in validation and test stays in test alone. Parts without a file are then cut from
    train, stratified; a stratum's last example, and inputs with two labels, stay in train. Sizes asked for are
    stratified subsamples of the parts: they never move an example from one part to another.

    With `many_targets` it is usual that one input has several (a prompt its completions): what is cut from train is
    whole inputs with all of their targets.

    Raises `DataError` where too few examples are left to cut a part from, or a stratum is gone from train;
    `SpecError` where the cut fractions leave nothing to train on.
    """
    notes: list[str] = []
    train, evaluation = records["train"], {part: records[part] for part in records if part != "train"}
    strata = {record.stratum for record in train}
    train = _drop_repeats(train, notes)
    ambiguous = set() if many_targets else _inputs_with_two_labels(train, noun, notes)
    if not many_targets:
        _report_repeats(evaluation, noun, notes)
    train, evaluation = _drop_overlaps(train, evaluation, noun, notes)
    _refuse_lost_strata(train, strata, spec)
    if many_targets:
        train, cut = _cut_whole_inputs(train, spec, noun, notes)
    else:
        train, cut = _cut_missing_parts(train, spec, ambiguous, notes)
    parts = {"train": train, **evaluation, **cut}
    return Splits({part: _subsample(parts[part], part, spec, notes) for part in PARTS}, notes)


def check_fractions(spec: DataSpec) -> None:
    """Raises `SpecError` where the parts to be cut leave nothing to train on."""
    if spec.validation is None and spec.test is None and spec.validation_fraction + spec.test_fraction >= 1:
        raise SpecError(
            f"validation_fraction {spec.validation_fraction} and test_fraction {spec.test_fraction} leave "
            "nothing to train on; together they must be below 1"
        )


def number_aware(label: str) -> tuple[bool, float, list[tuple[int, str]], str]:
    """Sorting key: numbers first, by value; then names, those with numbers in them as 'top2', 'top10'."""
    if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", label):
        return (False, float(label), [], label)
    # The split puts numbers at odd places. Of two without leading zeros the longer is the larger: no int() is
    # needed, which refuses thousands of digits.
    pieces = [p.lstrip("0") if i % 2 else p for i, p in enumerate(re.split("([0-9]+)", label))]
    return (True, 0.0, [(len(p) if i % 2 else 0, p) for i, p in enumerate(pieces)], label)


# --- repeats and overlaps -------------------------------------------------------------------------


def _drop_repeats(train: Sequence[Record], notes: list[str]) -> list[Record]:
    first: dict[tuple[Hashable, str], Record] = {}
    for record in train:
        first.setdefault((record.key, record.label), record)
    if len(first) < len(train):
        notes.append(f"train: {pluralize(len(train) - len(first), 'exact duplicate')} dropped.")
    return list(first.values())


def _inputs_with_two_labels(train: Iterable[Record], noun: str, notes: list[str]) -> set[Hashable]:
    """Inputs that occur under more than one label, in a `train` without exact repeats."""
    first: dict[Hashable, Record] = {}
    ambiguous: dict[Hashable, str] = {}
    for record in train:
        if first.setdefault(record.key, record) is not record:
            ambiguous.setdefault(record.key, f"{first[record.key].where} and {record.where}")
    if ambiguous:
        example = next(iter(ambiguous.values()))
        notes.append(f"train: {pluralize(len(ambiguous), noun)} with more than one label kept ({example}).")
    return set(ambiguous)


def _report_repeats(evaluation: Mapping[str, Sequence[Record]], noun: str, notes: list[str]) -> None:
    for part, records in evaluation.items():
        repeats = len(records) - len({record.key for record in records})
        if repeats:
            notes.append(f"{part}: {pluralize(repeats, f'repeated {noun}')} kept, so that the file is scored whole.")


def _drop_overlaps(
    train: list[Record], evaluation: Mapping[str, list[Record]], noun: str, notes: list[str]
) -> tuple[list[Record], dict[str, list[Record]]]:
    """Each input in one part only, test before validation before train, whatever its labels."""
    evaluation = dict(evaluation)
    if "validation" in evaluation and "test" in evaluation:
        kept = _without(evaluation["validation"], evaluation["test"], "validation", "test", noun, notes)
        if not kept:
            raise DataError(f"validation: all of its {noun}s are in test too; give two different files")
        evaluation["validation"] = kept
    for part, records in evaluation.items():
        train = _without(train, records, "train", part, noun, notes)
    return train, evaluation


def _without(
    records: list[Record], others: Iterable[Record], part: str, other: str, noun: str, notes: list[str]
) -> list[Record]:
    theirs = {record.key for record in others}
    kept = [record for record in records if record.key not in theirs]
    if len(kept) < len(records):
        notes.append(f"{part}: {pluralize(len(records) - len(kept), 'example')} removed, whose {noun} {other} has.")
    return kept


def _refuse_lost_strata(train: Iterable[Record], strata: Iterable[str], spec: DataSpec) -> None:
    left = {record.stratum for record in train}
    for stratum in sorted(strata, key=number_aware):
        if stratum not in left:
            of = f" of label {stratum!r}" if stratum else ""
            raise DataError(
                f"{spec.path}: every training example{of} is also in the validation or test "
                "file; give training examples that those files do not hold"
            )


# --- cutting and subsampling ----------------------------------------------------------------------


def _cut_missing_parts(
    train: list[Record], spec: DataSpec, ambiguous: set[Hashable], notes: list[str]
) -> tuple[list[Record], dict[str, list[Record]]]:
    """What is left of train, and the parts cut from it; both fractions are of train as it was before."""
    missing = [part for part in ("test", "validation") if getattr(spec, part) is None]
    by_label = any(record.stratum for record in train)
    if missing and by_label:
        _report_single_examples(train, notes)
    whole = len(train)
    wanted = {part: max(1, round(whole * getattr(spec, f"{part}_fraction"))) for part in missing}
    spare = sum(_spare(train, ambiguous).values())
    sizes = _allot(min(spare, sum(wanted.values())), wanted, most=wanted)
    cut = {}
    for part, size in sizes.items():
        quotas = _allot(size, _counts(train), most=_spare(train, ambiguous))
        cut[part], train = _draw(train, quotas, f"{spec.split_seed}|split|{part}", kept_back=ambiguous)
        if not cut[part]:
            of = f" of {pluralize(len(quotas), 'label')}" if by_label else ""
            check = f", or check the column {spec.label!r}" if by_label else ""
            raise DataError(
                f"{spec.path}: {pluralize(whole, 'example')}{of} are too few to "
                f"cut a {part} part from; name a {part} file{check}"
            )
        notes.append(
            f"{part}: no file given; {len(cut[part]):,} of {whole:,} examples cut from train "
            f"({_stratified(by_label)}split seed {spec.split_seed})."
        )
    return train, cut


def _cut_whole_inputs(
    train: list[Record], spec: DataSpec, noun: str, notes: list[str]
) -> tuple[list[Record], dict[str, list[Record]]]:
    """As `_cut_missing_parts`, for inputs with many targets each: inputs are drawn until the part is large enough."""
    whole = len(train)
    cut = {}
    for part in [part for part in ("test", "validation") if getattr(spec, part) is None]:
        sizes = Counter(record.key for record in train)
        generator = random.Random(f"{spec.split_seed}|split|{part}")
        shuffled = sorted((generator.random(), place, key) for place, key in enumerate(sizes))
        wanted = max(1, round(whole * getattr(spec, f"{part}_fraction")))
        taken: set[Hashable] = set()
        while wanted > 0 and len(taken) < len(sizes) - 1:
            key = shuffled[len(taken)][2]
            taken.add(key)
            wanted -= sizes[key]
        if not taken:
            raise DataError(
                f"{spec.path}: all {whole:,} examples have one and the same {noun}, so that no {part} part can be cut; "
                f"name a {part} file"
            )
        cut[part] = [record for record in train if record.key in taken]
        train = [record for record in train if record.key not in taken]
        notes.append(
            f"{part}: no file given; {len(cut[part]):,} of {whole:,} examples cut from train, "
            f"{pluralize(len(taken), noun)} with all of their targets (split seed {spec.split_seed})."
        )
    return train, cut


def _stratified(by_label: bool) -> str:
    return "stratified by label, " if by_label else ""


def _spare(train: Sequence[Record], ambiguous: set[Hashable]) -> dict[str, int]:
    """How many examples of each stratum can be cut: one at least is left to train on, and so are inputs with two
    labels, which would else be trained on under one label and scored under the other."""
    free = Counter(record.stratum for record in train if record.key not in ambiguous)
    return {stratum: min(free[stratum], count - 1) for stratum, count in _counts(train).items()}


def _report_single_examples(train: Iterable[Record], notes: list[str]) -> None:
    single = [label for label, count in _counts(train).items() if count == 1]
    if single:
        notes.append(f"train: the only example of {pluralize(len(single), 'label')} stays here: {join_names(single)}.")


def _subsample(records: list[Record], part: str, spec: DataSpec, notes: list[str]) -> list[Record]:
    """As many examples as `spec` asks of this part, stratified; every stratum once in train where that fits."""
    size = getattr(spec, f"{part}_size")
    if size is None:
        return records
    if size > len(records):
        notes.append(f"{part}: {size:,} examples asked for, all {len(records):,} there are used.")
        return records
    counts = _counts(records)
    least = 1 if part == "train" and size >= len(counts) else 0
    quotas = _allot(size, counts, most=counts, least=least)
    drawn, _ = _draw(records, quotas, f"{spec.split_seed}|subsample|{part}")
    if len(drawn) < len(records):
        by_label = _stratified(any(record.stratum for record in records))
        notes.append(f"{part}: {size:,} of {len(records):,} examples kept ({by_label}split seed {spec.split_seed}).")
    return drawn


def _counts(records: Iterable[Record]) -> dict[str, int]:
    """Examples of each stratum, in the order of labels."""
    counts = Counter(record.stratum for record in records)
    return {stratum: counts[stratum] for stratum in sorted(counts, key=number_aware)}


def _allot(total: int, counts: Mapping[str, int], *, most: Mapping[str, int], least: int = 0) -> dict[str, int]:
    """`total` shared out in proportion to `counts`: whole shares within bounds, by largest remainder.

    The shares sum to `total` where the bounds allow it; of equal remainders the earlier key comes first.
    """
    whole = sum(counts.values())
    exact = {key: total * count / whole for key, count in counts.items()}
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
    """The drawn records and the others, both in their old order; one random stream for each stratum.

    Seeded by text and drawn by `random()` alone, which Python promises to keep the same across versions.
    """
    places: dict[str, list[int]] = {stratum: [] for stratum in quotas}
    for place, record in enumerate(records):
        if record.key not in kept_back:
            places[record.stratum].append(place)
    drawn: set[int] = set()
    for stratum, candidates in places.items():
        generator = random.Random(f"{stream}|{stratum}")
        shuffled = sorted((generator.random(), place) for place in candidates)
        drawn.update(place for _, place in shuffled[: quotas[stratum]])
    return (
        [record for place, record in enumerate(records) if place in drawn],
        [record for place, record in enumerate(records) if place not in drawn],
    )
