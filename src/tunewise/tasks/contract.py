"""What a task is: data, a model with the right head, a collator, scores. A new kind of task is one file with these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from tunewise.store.records import DataFacts

Encoded = Mapping[str, Any]
"""One example as the model takes it, not yet padded; `labels` among its keys."""

Split = Sequence[Encoded]


class Task(Protocol):
    """A data set, ready for a model."""

    metric: str
    """The main metric's key in `score`'s result; higher is better."""
    labels: list[str]
    train: Split
    validation: Split
    test: Split

    @property
    def facts(self) -> DataFacts:
        """Sizes, labels and notes, for the record."""
        ...

    def collate(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        """A padded batch with labels."""
        ...

    def length(self, example: Encoded) -> int:
        """Tokens, for batches of like lengths in evaluation."""
        ...

    def load_model(self, seed: int) -> nn.Module:
        """A fresh base model with an untrained head; the same one for one seed."""
        ...

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each example, fp64, in nats."""
        ...

    def score(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Metrics of a whole split."""
        ...

    def confusion(self, logits: Tensor, labels: Tensor) -> list[list[int]] | None:
        """Rows true class, columns predicted; None where there are no classes."""
        ...
