"""Losses and metrics of classification, whatever is classified."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class ClassificationScores:
    """The scoring half of a `Task` whose examples have one label each: logits (examples, classes), labels (examples,)
    of class indices."""

    metric = "accuracy"
    labels: list[str]

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each example, fp64, in nats."""
        return F.cross_entropy(logits.double(), labels, reduction="none")

    def score(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Accuracy and macro F1, in [0, 1]."""
        table = torch.tensor(self.confusion(logits, labels), dtype=torch.float64)
        right = table.diagonal()
        support, predicted = table.sum(1), table.sum(0)
        # Classes that occur neither in the labels nor in the predictions say nothing about either.
        seen = (support + predicted) > 0
        f1 = 2 * right / (support + predicted).clamp(min=1)
        return {"accuracy": float(right.sum() / table.sum()), "macro_f1": float(f1[seen].mean())}

    def confusion(self, logits: Tensor, labels: Tensor) -> list[list[int]]:
        """Rows true class, columns predicted."""
        count = len(self.labels)
        flat = torch.bincount(labels * count + logits.argmax(dim=-1), minlength=count * count)
        return flat.reshape(count, count).tolist()
