"""Multiple choice: a question, some answers, one of them right (OpenBookQA, ARC, SWAG)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tunewise.errors import DataError, SpecError
from tunewise.locate import resolve
from tunewise.models.head import Head
from tunewise.models.load import load_tokenizer
from tunewise.spec import DataSpec, ModelSpec
from tunewise.store.records import DataFacts
from tunewise.tasks.classification import check_columns
from tunewise.tasks.contract import Encoded, Split, StandIn
from tunewise.tasks.files import as_text, read_objects, read_rows
from tunewise.tasks.scores import ClassificationScores
from tunewise.tasks.splits import PARTS, Record, check_fractions, make_splits
from tunewise.tasks.text_inputs import TextInputs

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class MultipleChoice(TextInputs, ClassificationScores):
    """Questions with the same number of answers each. A model reads question and answer as a pair, once an answer, and
    its one output says how well they go together; the softmax is over the answers.

    Classes are the answers' places, A, B, ...: of the metrics of classification only accuracy means something here.
    """

    head = Head("choice")

    def __init__(self, model: ModelSpec, data: DataSpec, max_length: int) -> None:
        super().__init__(model, max_length)
        parts, notes = _load(data)
        self.labels = list(LETTERS[: len(parts["train"][0].content[1])])
        self.train, self.validation, self.test = (self._encode(parts[part]) for part in PARTS)
        cut = self.cut_notes(self.train, self.validation, self.test)
        self.facts = DataFacts(
            train=len(self.train),
            validation=len(self.validation),
            test=len(self.test),
            labels=self.labels,
            notes=[*notes, *cut],
        )

    @property
    def metrics(self) -> Sequence[str]:
        return ("accuracy",)

    def score(self, kept: Tensor, targets: Tensor) -> dict[str, float]:
        """The share of questions whose right answer has the highest score."""
        return {"accuracy": super().score(kept, targets)["accuracy"]}

    def confusion(self, kept: Tensor, targets: Tensor) -> list[list[int]]:
        """By the answers' places."""
        return super().confusion(kept, targets)

    def _encode(self, records: Sequence[Record]) -> Split:
        """An example: for each answer the token ids of (question, answer); of a pair that is too long the question
        loses its beginning."""
        rows: list[dict[str, Any]] = []
        for record in records:
            question, answers, right = record.content
            pairs = {"text": [question] * len(answers), "text_pair": list(answers)}
            full = self.tokenizer(**pairs, verbose=False)["input_ids"]
            too_long = any(len(ids) > self.max_length for ids in full)
            self.truncated += too_long
            encoded = self._shortened(pairs, record) if too_long else self.tokenizer(**pairs)
            rows.append({**{key: encoded[key] for key in encoded if key != "attention_mask"}, "labels": right})
        return rows

    def _shortened(self, pairs: dict[str, list[str]], record: Record) -> Any:
        room = self.max_length - self.tokenizer.num_special_tokens_to_add(pair=True)
        answers = self.tokenizer(pairs["text_pair"], add_special_tokens=False)["input_ids"]
        if max(map(len, answers)) >= room:
            raise DataError(
                f"{record.where}: an answer alone is longer than {self.max_length} tokens; raise max_length"
            )
        side, self.tokenizer.truncation_side = self.tokenizer.truncation_side, "left"
        try:
            return self.tokenizer(**pairs, truncation="only_first", max_length=self.max_length)
        finally:
            self.tokenizer.truncation_side = side

    def length(self, example: Encoded) -> int:
        return max(map(len, example["input_ids"]))

    def collate(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        """(batch, answers, tokens)"""
        keys = [key for key in examples[0] if key != "labels"]
        flat = [{key: e[key][i] for key in keys} for e in examples for i in range(len(self.labels))]
        batch = self.tokenizer.pad(flat, return_tensors="pt", return_attention_mask=True)
        shaped = {key: value.reshape(len(examples), len(self.labels), -1) for key, value in batch.items()}
        return {**shaped, "labels": torch.tensor([e["labels"] for e in examples])}

    def describe(self, batch: dict[str, Tensor]) -> str:
        count, answers, width = batch["input_ids"].shape
        return f"{count} questions of {answers} answers ({count * answers * width:,} tokens with padding)"


def choice_stand_in(model: ModelSpec, data: DataSpec, labels: list[str]) -> StandIn:
    """One question for any model of multiple choice."""
    tokenizer = load_tokenizer(model)
    answers = [f"Answer {letter}." for letter in labels]
    batch = tokenizer(["Which one is it?"] * len(answers), answers, padding=True, return_tensors="pt")
    inputs = {key: value.unsqueeze(0) for key, value in batch.items()}
    return StandIn(Head("choice"), inputs, tokenizer, tokenizer.pad_token_id)


# --- reading --------------------------------------------------------------------------------------


def _load(spec: DataSpec) -> tuple[dict[str, list[Record]], list[str]]:
    """The three parts; a record's content is (question, answers, index of the right one)."""
    check_fractions(spec)
    paths = {"train": spec.path, "validation": spec.validation, "test": spec.test}
    read = {part: _read(spec, path) for part, path in paths.items() if path is not None}
    first = read["train"][0]
    for record in (r for records in read.values() for r in records):
        if len(record.content[1]) != len(first.content[1]):
            raise DataError(
                f"{record.where}: {len(record.content[1])} answers, where {first.where} has {len(first.content[1])}; "
                "all questions need the same number"
            )
    splits = make_splits(spec, read.pop("train"), read, noun="question")
    return {part: getattr(splits, part) for part in PARTS}, splits.notes


def _read(spec: DataSpec, path: str) -> list[Record]:
    names = _columns(spec)
    if len(names) > 1:
        check_columns({"text": spec.text, **{f"answer {n}": n for n in names}, "label": spec.label})
        rows = read_rows(resolve(path), [spec.text, *names, spec.label], encoding=spec.encoding)
        found = [
            (row.values[spec.text], [row.values[n] for n in names], names, row.values[spec.label], row.where)
            for row in rows
        ]
    else:
        found = [
            (
                as_text(_inside(row, spec.text, where), spec.text, where),
                *_answers(_inside(row, names[0], where), names[0], where),
                as_text(_inside(row, spec.label, where), spec.label, where),
                where,
            )
            for row, where in read_objects(resolve(path), spec.encoding)
        ]
    if not found:
        raise DataError(f"{path}: the file has no rows; give one with examples")
    return [_record(*row) for row in found]


def _columns(spec: DataSpec) -> list[str]:
    """The column of lists of answers, or the columns of one answer each."""
    names = [name.strip() for name in (spec.choices or "choices").split(",") if name.strip()]
    if not names:
        raise SpecError("choices names no column; give one that holds lists, or several with commas")
    return names


def _record(question: str, answers: Sequence[str], names: Sequence[str], label: str, where: str) -> Record:
    if not question.strip() or not all(answer.strip() for answer in answers):
        raise DataError(f"{where}: an empty question or answer; fill it in or remove the row")
    if not 2 <= len(answers) <= len(LETTERS):
        raise DataError(f"{where}: {len(answers)} answers; 2 to {len(LETTERS)} are expected")
    right = _right(label.strip(), answers, names, where)
    key = (question, *sorted(answers))  # the same answers in another order are the same question
    return Record(key, answers[right], LETTERS[right], where, (question, tuple(answers), right))


def _right(label: str, answers: Sequence[str], names: Sequence[str], where: str) -> int:
    """Index of the right answer: by the answers' own names, their texts, a letter, or a number from 0."""
    for known in (names, answers):
        if list(known).count(label) == 1:
            return list(known).index(label)
    letters = LETTERS[: len(answers)]
    if label.upper() in letters and len(label) == 1:
        return letters.index(label.upper())
    if label.isdecimal() and int(label) < len(answers):
        return int(label)
    raise DataError(
        f"{where}: the right answer is given as {label[:40]!r}; expected: the answer's text, a letter from A to "
        f"{letters[-1]}, or a number from 0 to {len(answers) - 1}"
    )


def _answers(cell: Any, name: str, where: str) -> tuple[list[str], list[str]]:
    """Texts and names of a list of texts, a list of {text, label}, or {text: [...], label: [...]}; names may lack."""
    if isinstance(cell, Mapping) and isinstance(cell.get("text"), list):
        texts, names = cell["text"], cell.get("label") or []
    elif isinstance(cell, list) and all(isinstance(one, Mapping) for one in cell):
        texts, names = [one.get("text") for one in cell], [one["label"] for one in cell if "label" in one]
    elif isinstance(cell, list):
        texts, names = cell, []
    else:
        raise DataError(
            f"{where}: column {name!r} holds no list of answers; give one that does, or several: --choices a,b,c"
        )
    return [as_text(text, name, where) for text in texts], [as_text(one, name, where) for one in names]


def _inside(row: Mapping[str, Any], name: str, where: str) -> Any:
    """The value of a column; `question.stem` is `stem` inside the object `question` where no column has that name."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise DataError(f"{where}: no column {name!r}; it has {', '.join(map(str, row))}")
        value = value[part]
    return value
