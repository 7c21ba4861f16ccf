"""What all tasks on texts share: reading, tokenising once, padding a batch at a time."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tunewise.errors import DataError, ModelError
from tunewise.locate import resolve
from tunewise.models.head import Head
from tunewise.models.load import load_tokenizer, meta_model, position_limit
from tunewise.spec import DataSpec, ModelSpec
from tunewise.tasks.contract import Encoded, Split, Task
from tunewise.tasks.labels import read_texts
from tunewise.tasks.splits import Record, Splits


class TokenTask(Task):
    """A task on sequences of tokens. A subclass reads the data, encodes records and pads batches."""

    def __init__(self, model: ModelSpec, data: DataSpec, max_length: int) -> None:
        self.tokenizer = self.load_processor(model, data)
        labels, splits = self.read(data)
        self._set_up(model, data, max_length, labels)
        parts = {part: self.encode(records) for part, records in splits.parts.items()}
        self.set_parts(
            parts, f"at most {self.max_length} tokens", [*data.notes, *splits.notes, *self.encoding_notes(parts)]
        )

    @classmethod
    def reopen(cls, model: ModelSpec, data: DataSpec, max_length: int, labels: Sequence[str]) -> Self:
        """Without the run's data, which is not read, and without the call of `__init__`."""
        task = cls.__new__(cls)
        task.tokenizer = cls.load_processor(model, data)
        task._set_up(model, data, max_length, labels)
        return task

    def _set_up(self, model: ModelSpec, data: DataSpec, max_length: int, labels: Sequence[str]) -> None:
        self.model_spec = model
        self.truncated = 0
        self.labels = list(labels)
        self.head = self.make_head(self.labels, data)
        positions = position_limit(meta_model(model, self.head))
        # Some tokenizers say 10^30 for no limit.
        self.token_limit = min(self.tokenizer.model_max_length, positions or 1_000_000, 1_000_000)
        self.max_length = min(max_length, self.token_limit)

    @classmethod
    @abstractmethod
    def read(cls, data: DataSpec) -> tuple[list[str], Splits]:
        """The labels and the split records."""

    @abstractmethod
    def encode(self, records: Sequence[Record]) -> Split:
        """Token ids and what goes with them, not padded, and the target."""

    def encoding_notes(self, parts: Mapping[str, Split]) -> list[str]:
        """Sentences on what the encoding changed."""
        if not self.truncated:
            return []
        total = sum(map(len, parts.values()))
        return [f"{self.truncated} of {total} texts are longer than {self.max_length} tokens and were cut there."]

    @classmethod
    def read_labels(cls, data: DataSpec) -> list[str]:
        return cls.read(data)[0]

    @classmethod
    def load_processor(cls, model: ModelSpec, data: DataSpec) -> PreTrainedTokenizerBase:
        return load_tokenizer(model)

    @classmethod
    def sample_inputs(cls, model: nn.Module, head: Head, batch: int, length: int) -> dict[str, Tensor]:
        positions = position_limit(model)
        if positions is not None and positions < length:
            raise ModelError(f"--length {length} is above this model's {positions} positions")
        weight = next(model.parameters())
        ids = sample_ids(model, (batch, length))
        # A mask of four dimensions is used as it is; for any other the model would look for padding in its values.
        mask = torch.zeros(batch, 1, length, length, dtype=weight.dtype, device=weight.device)
        return {"input_ids": ids, "attention_mask": mask, "labels": cls.sample_labels(ids, head)}

    @classmethod
    def sample_labels(cls, ids: Tensor, head: Head) -> Tensor:
        """Labels for `sample_inputs`, on the device of `ids`."""
        return torch.zeros(len(ids), dtype=torch.long, device=ids.device)

    def plain_code(self, source: str, data: DataSpec) -> tuple[str, str] | None:
        line = self.plain_line(data)
        if line is None:
            return None
        return "AutoTokenizer", f"tokenizer = AutoTokenizer.from_pretrained({source}); {line}"

    def plain_line(self, data: DataSpec) -> str | None:
        """Python that prints a prediction by means of `model` and `tokenizer`."""
        return None

    def length(self, example: Encoded) -> int:
        return len(example["input_ids"])

    def describe(self, batch: dict[str, Tensor]) -> str:
        count, width = batch["input_ids"].shape
        return f"{count} texts ({count * width:,} tokens with padding, at most {self.max_length} each)"


class TextTask(TokenTask):
    """A task on texts, or pairs of texts, with one target each. A subclass reads the data, records with the content
    (text, second text or None), and says what a target is."""

    separator_used = False
    """Whether second texts start with `separator`."""

    @cached_property
    def separator(self) -> str:
        """What second texts start with: nothing where the tokenizer's pair template marks them, else the tokenizer's
        separator, or a line end. Without it ("ab", "c") and ("a", "bc") could be the same tokens."""
        first, second = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", "b"))
        pair, joined = self.tokenizer("a", "b")["input_ids"], [*first, *second]
        if all(pair[start : start + len(joined)] != joined for start in range(len(pair))):
            return ""
        self.separator_used = True
        for mark in (self.tokenizer.sep_token, "\n", self.tokenizer.eos_token):
            if mark and self.tokenizer(mark + "b", add_special_tokens=False)["input_ids"] != second:
                return str(mark)
        raise ModelError(f"model {self.model_spec.path!r}: its tokenizer has nothing to put between two texts")

    @abstractmethod
    def target(self, record: Record) -> float | list[float]:
        """The target of an example: a number, or a list of numbers."""

    def encode(self, records: Sequence[Record]) -> Split:
        texts = [record.content[0] for record in records]
        paired = records[0].content[1] is not None
        pairs = [self.separator + record.content[1] for record in records] if paired else None
        full = self.tokenizer(texts, pairs, truncation=False, verbose=False)["input_ids"]
        self.truncated += sum(len(ids) > self.max_length for ids in full)
        encoded = self.tokenizer(texts, pairs, truncation=True, max_length=self.max_length)
        keys = [key for key in encoded if key != "attention_mask"]
        rows = [{key: encoded[key][i] for key in keys} for i in range(len(records))]
        for row, text in zip(rows, texts, strict=True):
            if not row["input_ids"]:
                raise DataError(f"the text {text[:40]!r} has no tokens; remove it, or check the tokenizer")
        return [{**row, "labels": self.target(record)} for row, record in zip(rows, records, strict=True)]

    def read_inputs(self, data: DataSpec) -> tuple[list[str], Split]:
        any_label = self.labels[0] if self.labels else "0"
        records = read_texts(data, resolve(data.path), label=any_label)
        return [record.where for record in records], self.encode(records)

    def plain_inputs(self, data: DataSpec) -> str:
        """Python that encodes one text or pair as `encode` does, by a `tokenizer`."""
        second = "" if data.text_pair is None else f", {self.separator + 'Its second text.'!r}"
        return f"tokenizer('A text.'{second}, truncation=True, max_length={self.max_length}, return_tensors='pt')"

    def encoding_notes(self, parts: Mapping[str, Split]) -> list[str]:
        notes = super().encoding_notes(parts)
        if self.separator_used:
            notes.append(
                f"The tokenizer joins two texts without a mark between them: {self.separator!r} was put before each "
                "second text; do the same where you use the adapter."
            )
        return notes

    def collate(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        features = [{key: value for key, value in e.items() if key != "labels"} for e in examples]
        batch = self.tokenizer.pad(features, return_tensors="pt", return_attention_mask=True)
        return {**batch, "labels": torch.tensor([e["labels"] for e in examples])}


def sample_ids(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Token ids of a shape, running through the vocabulary."""
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    ids = torch.arange(math.prod(shape), device=embeddings.weight.device)
    return (ids % embeddings.num_embeddings).view(shape)
