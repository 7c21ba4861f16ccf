"""Texts and text pairs as a model takes them: tokenised once, padded a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunewise.errors import DataError
from tunewise.models.head import Head
from tunewise.models.load import load_model, load_tokenizer
from tunewise.spec import ModelSpec
from tunewise.tasks.classification import Example
from tunewise.tasks.contract import Encoded, Split, StandIn


class TextInputs:
    """The input half of a `Task` on texts or pairs with one target each; `truncated` counts the texts that were cut."""

    head: Head

    def __init__(self, model: ModelSpec, max_length: int) -> None:
        self.model_spec = model
        self.tokenizer = load_tokenizer(model)
        self.max_length = min(max_length, longest(self.tokenizer))
        self.truncated = 0

    def encode(self, examples: Sequence[Example]) -> Split:
        """Token ids and what goes with them, not padded."""
        texts = [e.text for e in examples]
        pairs = [e.text_pair or "" for e in examples] if examples[0].text_pair is not None else None
        full = self.tokenizer(texts, pairs, truncation=False, verbose=False)["input_ids"]
        self.truncated += sum(len(ids) > self.max_length for ids in full)
        encoded = self.tokenizer(texts, pairs, truncation=True, max_length=self.max_length)
        keys = [k for k in encoded if k != "attention_mask"]
        rows: list[dict[str, Any]] = []
        for i, example in enumerate(examples):
            row = {key: encoded[key][i] for key in keys}
            if not row["input_ids"]:
                raise DataError(f"the text {example.text[:40]!r} has no tokens; remove it, or check the tokenizer")
            rows.append({**row, "labels": example.label})
        return rows

    def cut_notes(self, *splits: Split) -> list[str]:
        """A sentence on the texts that were cut, where there are any."""
        if not self.truncated:
            return []
        total = sum(map(len, splits))
        return [f"{self.truncated} of {total} texts are longer than {self.max_length} tokens and were cut there."]

    def length(self, example: Encoded) -> int:
        return len(example["input_ids"])

    def collate(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        features = [{k: v for k, v in e.items() if k != "labels"} for e in examples]
        batch = self.tokenizer.pad(features, return_tensors="pt", return_attention_mask=True)
        return {**batch, "labels": torch.tensor([e["labels"] for e in examples])}

    def describe(self, batch: dict[str, Tensor]) -> str:
        count, width = batch["input_ids"].shape
        return f"{count} texts ({count * width:,} tokens with padding, at most {self.max_length} each)"

    def load_model(self, seed: int) -> nn.Module:
        return load_model(self.model_spec, self.head, seed=seed, pad_token_id=self.tokenizer.pad_token_id)


def two_sentences(model: ModelSpec, head: Head) -> StandIn:
    """Inputs for any model of texts."""
    tokenizer = load_tokenizer(model)
    probe = ["The same text, for both.", "A second and rather longer one, so that there is padding too."]
    inputs = dict(tokenizer(probe, padding=True, return_tensors="pt"))
    return StandIn(head, inputs, tokenizer, tokenizer.pad_token_id)


def longest(tokenizer: Any) -> int:
    """The tokenizer's own limit; some say 10^30 for 'none'."""
    return int(min(tokenizer.model_max_length, 1_000_000))
