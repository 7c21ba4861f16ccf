"""Multiple choice: a question, some answers, one of them right (OpenBookQA, ARC, SWAG)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BatchEncoding

from tunewise.errors import DataError, SpecError
from tunewise.locate import resolve
from tunewise.models.head import Head
from tunewise.registry import TASKS
from tunewise.spec import DataSpec
from tunewise.tasks.contract import Encoded, Split
from tunewise.tasks.files import as_text, read_records, read_rows
from tunewise.tasks.labels import check_columns
from tunewise.tasks.scores import ClassificationScores
from tunewise.tasks.splits import Record, Splits, make_splits, read_parts
from tunewise.tasks.text_inputs import TextTask, sample_ids

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class MultipleChoice(TextTask, ClassificationScores):
    """Questions with the same number of answers each. A model reads question and answer as a pair, once for each
    answer, and its one output says how well they fit; the softmax is over the answers.

    Classes are the places of the answers, A, B, ...: of the metrics of classification only accuracy is meaningful.
    """

    @classmethod
    def recognises(cls, data: DataSpec) -> bool:
        return data.choices is not None

    @classmethod
    def make_head(cls, labels: Sequence[str], data: DataSpec | None = None) -> Head:
        return Head("AutoModelForMultipleChoice", "a model of multiple choice", labels=tuple(labels))

    @classmethod
    def sample_inputs(cls, model: nn.Module, head: Head, batch: int, length: int) -> dict[str, Tensor]:
        ids = sample_ids(model, (batch, len(head.labels), length))
        return {"input_ids": ids, "labels": cls.sample_labels(ids, head)}

    @classmethod
    def read(cls, data: DataSpec) -> tuple[list[str], Splits]:
        """A record's content is (question, answers, index of the right one)."""
        parts = read_parts(data, lambda path: _read(data, path, data.label))
        questions = [question for part in parts.values() for question in part]
        count = len(questions[0].answers)
        _check_count(questions, count, f"{questions[0].where} has {count}")
        options = _options(questions)
        records = {part: [_record(question, options) for question in content] for part, content in parts.items()}
        return list(LETTERS[:count]), make_splits(data, records, noun="question")

    def read_inputs(self, data: DataSpec) -> tuple[list[str], Split]:
        questions = _read(data, resolve(data.path), None)
        _check_count(questions, len(self.labels), f"the run had {len(self.labels)}")
        records = [Record(None, "", "", q.where, (q.text, q.answers, 0)) for q in questions]
        return [question.where for question in questions], self.encode(records)

    def plain_line(self, data: DataSpec) -> str:
        answers = [f"{self.separator}Answer {label}." for label in self.labels]
        pairs = f"tokenizer(['A question?'] * {len(answers)}, {answers}, padding=True, return_tensors='pt')"
        return (
            f"inputs = {pairs}; logits = "
            "model(**{key: value[None] for key, value in inputs.items()}).logits; "
            f"print(dict(zip({''.join(self.labels)!r}, logits.softmax(-1)[0].tolist())))"
        )

    @property
    def metrics(self) -> Sequence[str]:
        return ("accuracy",)

    def score(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """The share of questions whose right answer has the highest score."""
        return {"accuracy": super().score(outputs, targets)["accuracy"]}

    def target(self, record: Record) -> int:
        return int(record.content[2])

    def encode(self, records: Sequence[Record]) -> Split:
        """An example: for each answer the token ids of (question, answer); of a pair that is too long the question
        loses its beginning."""
        rows: list[dict[str, object]] = []
        for record in records:
            question, answers, _ = record.content
            pairs = {"text": [question] * len(answers), "text_pair": [self.separator + answer for answer in answers]}
            full = self.tokenizer(**pairs, verbose=False)["input_ids"]
            too_long = any(len(ids) > self.max_length for ids in full)
            self.truncated += too_long
            encoded = self._shortened(pairs, record) if too_long else self.tokenizer(**pairs)
            rows.append(
                {**{key: encoded[key] for key in encoded if key != "attention_mask"}, "labels": self.target(record)}
            )
        return rows

    def _shortened(self, pairs: dict[str, list[str]], record: Record) -> BatchEncoding:
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


@dataclass(frozen=True, slots=True)
class _Question:
    text: str
    answers: list[str]
    names: list[str]
    """Of the answers, as the file has them; empty where it has none."""
    label: str
    where: str


Options = Callable[[_Question], Sequence[str]]


def _read(spec: DataSpec, path: Path, labelled: str | None) -> list[_Question]:
    """The questions of a file, with the right answers where `labelled` names their column."""
    names = [name.strip() for name in (spec.choices or "choices").split(",") if name.strip()]
    if not names:
        raise SpecError("choices names no column; give a column of lists, or several columns separated by commas")
    questions = []
    if len(names) > 1:
        check_columns({"text": spec.text, **{f"answer {n}": n for n in names}, "label": spec.label})
        columns = [spec.text, *names, *([] if labelled is None else [labelled])]
        for row in read_rows(path, columns, encoding=spec.encoding):
            answers = [row.values[name] for name in names]
            label = "" if labelled is None else row.values[labelled].strip()
            questions.append(_Question(row.values[spec.text], answers, names, label, row.where))
    else:
        for cells, where in read_records(path, encoding=spec.encoding):
            text = as_text(_inside(cells, spec.text, where), spec.text, where)
            label = "" if labelled is None else as_text(_inside(cells, labelled, where), labelled, where)
            answers, keys = _answers(_inside(cells, names[0], where), names[0], where)
            questions.append(_Question(text, answers, keys, label.strip(), where))
    for question in questions:
        if not question.text.strip() or not all(answer.strip() for answer in question.answers):
            raise DataError(f"{question.where}: an empty question or answer; fill it in or remove the row")
        if not 2 <= len(question.answers) <= len(LETTERS):
            raise DataError(f"{question.where}: {len(question.answers)} answers; 2 to {len(LETTERS)} are expected")
    return questions


def _check_count(questions: Sequence[_Question], count: int, reason: str) -> None:
    for question in questions:
        if len(question.answers) != count:
            raise DataError(
                f"{question.where}: {len(question.answers)} answers, where {reason}; all questions need the same number"
            )


def _options(questions: Sequence[_Question]) -> Options:
    """What labels are to be compared with: the one reading that fits all rows, since a number can be the text of an
    answer in one row and the place of an answer in another."""
    readings: list[Options] = [
        lambda question: question.names,
        lambda question: question.answers,
        lambda question: LETTERS[: len(question.answers)],
        lambda question: LETTERS[: len(question.answers)].lower(),
        lambda question: [str(place) for place in range(len(question.answers))],
    ]
    unread = questions[0]
    for options in readings:
        failing = next((q for q in questions if list(options(q)).count(q.label) != 1), None)
        if failing is None:
            return options
        unread = max(unread, failing, key=questions.index)
    last = len(unread.answers) - 1
    raise DataError(
        f"{unread.where}: the right answer is given as {unread.label[:40]!r}; expected in all rows alike: the answer's "
        f"name or text, a letter from A to {LETTERS[last]}, or a number from 0 to {last}"
    )


def _record(question: _Question, options: Options) -> Record:
    right = list(options(question)).index(question.label)
    key = (question.text, *sorted(question.answers))  # the same answers in another order are the same question
    content = (question.text, tuple(question.answers), right)
    return Record(key, question.answers[right], LETTERS[right], question.where, content)


def _answers(cell: object, name: str, where: str) -> tuple[list[str], list[str]]:
    """Texts and names of a list of texts, a list of {text, label}, or {text: [...], label: [...]}; names may lack."""
    if isinstance(cell, Mapping) and isinstance(cell.get("text"), list):
        texts, names = cell["text"], cell.get("label") or []
    elif isinstance(cell, list) and all(isinstance(item, Mapping) for item in cell):
        texts, names = [item.get("text") for item in cell], [item["label"] for item in cell if "label" in item]
    elif isinstance(cell, list):
        texts, names = cell, []
    else:
        raise DataError(
            f"{where}: column {name!r} holds no list of answers; give one that does, or several: --choices a,b,c"
        )
    return [as_text(text, name, where) for text in texts], [as_text(key, name, where) for key in names]


def _inside(row: Mapping[str, object], name: str, where: str) -> object:
    """The value of a column; `question.stem` is `stem` inside the object `question` where no column has that name."""
    if name in row:
        return row[name]
    value: object = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise DataError(f"{where}: no column {name!r}; it has {', '.join(map(str, row))}")
        value = value[part]
    return value


TASKS.register("choice", MultipleChoice)
