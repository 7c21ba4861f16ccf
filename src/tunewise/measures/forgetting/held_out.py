"""Held-out inputs of the base model's own kind, for forgetting."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunewise.measures.finished import FinishedRun
from tunewise.methods.draws import sample
from tunewise.models.load import load_tokenizer

EXAMPLES = 64
TOKENS = 64
BATCH = 16


@dataclass(frozen=True)
class HeldOut:
    """Batches for the backbone (no labels), and their source in words."""

    batches: list[dict[str, Tensor]]
    source: str
    tokenizer: Any = None

    @property
    def digest(self) -> str:
        """sha256 over all values, 16 hex digits."""
        found = hashlib.sha256()
        for batch in self.batches:
            for key in sorted(batch):
                found.update(key.encode() + batch[key].contiguous().numpy().tobytes())
        return found.hexdigest()[:16]


def held_out(run: FinishedRun) -> HeldOut:
    """For text, passages of Python's documentation, which is on every machine; else the task's test inputs."""
    if not run.task.has_tokens:
        return _test_inputs(run)
    tokenizer = load_tokenizer(run.spec.model)
    limit = min(TOKENS, int(min(tokenizer.model_max_length, 1_000_000)))
    texts = documentation(EXAMPLES)
    rows = [tokenizer(text, truncation=True, max_length=limit) for text in texts]
    rows = sorted((row for row in rows if len(row["input_ids"]) > 2), key=lambda row: -len(row["input_ids"]))
    batches = [dict(tokenizer.pad(rows[i : i + BATCH], return_tensors="pt")) for i in range(0, len(rows), BATCH)]
    source = f"{len(rows)} passages of up to {limit} tokens of the Python language's documentation"
    return HeldOut(batches, source, tokenizer)


def documentation(count: int) -> list[str]:
    """`count` paragraphs of running text, spread evenly over Python's language reference."""
    from pydoc_data import topics

    paragraphs = [
        " ".join(paragraph.split())
        for name in sorted(topics.topics)
        for paragraph in topics.topics[name].split("\n\n")
        # Grammar, code and tables are indented or full of signs; sentences are not.
        if len(paragraph) >= 240 and not paragraph.startswith(" ") and paragraph.count(" ") > len(paragraph) / 10
    ]
    step = len(paragraphs) / count
    return [paragraphs[int(i * step)] for i in range(min(count, len(paragraphs)))]


def _test_inputs(run: FinishedRun) -> HeldOut:
    rows = sample(run.task.test, EXAMPLES, 0, "forgetting")
    batches = []
    for start in range(0, len(rows), BATCH):
        batch = run.task.collate(rows[start : start + BATCH])
        batches.append({key: value for key, value in batch.items() if key != "labels"})
    return HeldOut(batches, f"{len(rows)} of the task's own test inputs")


def masked(batch: dict[str, Tensor], tokenizer: Any, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """15 % of the ordinary tokens masked, at least one a row, by `seed` alone; and the labels, -100 elsewhere."""
    ids = batch["input_ids"]
    draw = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed))
    special = torch.tensor(
        [tokenizer.get_special_tokens_mask(row, already_has_special_tokens=True) for row in ids.tolist()]
    )
    ordinary = batch["attention_mask"].bool() & ~special.bool()
    draw = draw.masked_fill(~ordinary, 2.0)
    chosen = (draw < 0.15) | ((draw == draw.amin(dim=1, keepdim=True)) & ordinary)
    labels = ids.masked_fill(~chosen, -100)
    return {**batch, "input_ids": ids.masked_fill(chosen, tokenizer.mask_token_id)}, labels
