"""Multiple choice: a question, some answers, one of them right (OpenBookQA, ARC, SWAG)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BatchEncoding

from tunewise.errors import DataError, SpecError
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
        records = read_parts(data, lambda path: _read(data, path))
        first = records["train"][0]
        count = len(first.content[1])
        for record in (r for part in records.values() for r in part):
            if len(record.content[1]) != count:
                raise DataError(
                    f"{record.where}: {len(record.content[1])} answers, where {first.where} has {count}; "
                    "all questions need the same number"
                )
        return list(LETTERS[:count]), make_splits(data, records, noun="question")

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


def _read(spec: DataSpec, path: Path) -> list[Record]:
    names = [name.strip() for name in (spec.choices or "choices").split(",") if name.strip()]
    if not names:
        raise SpecError("choices names no column; give a column of lists, or several columns separated by commas")
    records = []
    if len(names) > 1:
        check_columns({"text": spec.text, **{f"answer {n}": n for n in names}, "label": spec.label})
        for row in read_rows(path, [spec.text, *names, spec.label], encoding=spec.encoding):
            answers = [row.values[name] for name in names]
            records.append(_record(row.values[spec.text], answers, names, row.values[spec.label], row.where))
        return records
    for cells, where in read_records(path, encoding=spec.encoding):
        question, label = (as_text(_inside(cells, column, where), column, where) for column in (spec.text, spec.label))
        answers, keys = _answers(_inside(cells, names[0], where), names[0], where)
        records.append(_record(question, answers, keys, label, where))
    return records


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
    for texts in (names, answers):
        if list(texts).count(label) == 1:
            return list(texts).index(label)
    letters = LETTERS[: len(answers)]
    if label.upper() in letters and len(label) == 1:
        return letters.index(label.upper())
    if label.isdecimal() and int(label) < len(answers):
        return int(label)
    raise DataError(
        f"{where}: the right answer is given as {label[:40]!r}; expected: the answer's text, a letter from A to "
        f"{letters[-1]}, or a number from 0 to {len(answers) - 1}"
    )


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
