"""Losses and metrics of classification, whatever is classified."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunewise.errors import SpecError
from tunewise.tasks.contract import Prediction, Split, Task
from tunewise.text_format import join_names


class ClassificationScores(Task):
    """The scoring half of a task whose examples have one label each: logits (examples, classes), labels (examples,)
    of class indices."""

    metric = "accuracy"
    positive: str | None = None
    """The class that F1 is of, with two classes; the second in order unless set."""

    @property
    def metrics(self) -> Sequence[str]:
        """Accuracy, macro F1, Matthews correlation, and with two classes the F1 of the positive one."""
        return ("accuracy", "macro_f1", "matthews", *(("f1",) if len(self.labels) == 2 else ()))

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each example, fp64, in nats."""
        return F.cross_entropy(outputs.double(), labels, reduction="none")

    def score(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """The metrics, all in [0, 1] but Matthews correlation, which is in [-1, 1]."""
        table = torch.tensor(self.confusion(outputs, targets), dtype=torch.float64)
        right = table.diagonal()
        support, predicted = table.sum(1), table.sum(0)
        # Classes that occur neither in the labels nor in the predictions say nothing about either.
        seen = (support + predicted) > 0
        f1 = 2 * right / (support + predicted).clamp(min=1)
        scores = {
            "accuracy": float(right.sum() / table.sum()),
            "macro_f1": float(f1[seen].mean()),
            "matthews": matthews(table),
        }
        if len(self.labels) != 2:
            return scores
        return {**scores, "f1": float(f1[self.labels.index(self.positive or self.labels[1])])}

    def constant_scores(self, split: Split) -> dict[str, float]:
        """Over the classes, one predicted throughout."""
        targets = self.targets(split)
        constant = F.one_hot(torch.arange(len(self.labels)))
        scores = [self.score(row.expand(len(targets), -1), targets) for row in constant]
        return {key: max(score[key] for score in scores) for key in scores[0]}

    def predict(self, model: nn.Module, examples: Split) -> list[Prediction]:
        """`prediction`: the class; `probability_CLASS` for each class."""
        names = [f"probability_{label}" for label in self.labels]
        rows = self.outputs(model, examples).double().softmax(-1)
        return [
            {"prediction": self.labels[int(row.argmax())], **dict(zip(names, row.tolist(), strict=True))}
            for row in rows
        ]

    def describe_positive(self) -> list[str]:
        """A sentence on the class that F1 is of. Raises `SpecError` for a class that the data lacks."""
        if self.positive is not None and (self.positive not in self.labels or len(self.labels) != 2):
            raise SpecError(
                f"positive {self.positive!r} (--positive) must be one of two classes; the data has "
                f"{join_names(self.labels)}"
            )
        if "f1" not in self.metrics:
            return []
        return [f"F1 is that of the class {self.positive or self.labels[1]!r}; --positive chooses the other one."]

    def confusion(self, outputs: Tensor, targets: Tensor) -> list[list[int]]:
        """Rows true class, columns predicted."""
        count = len(self.labels)
        flat = torch.bincount(targets * count + outputs.argmax(dim=-1), minlength=count * count)
        return flat.reshape(count, count).tolist()


def matthews(table: Tensor) -> float:
    """Matthews correlation of a confusion matrix of any size: Gorodkin's R_K (Computational Biology and Chemistry 28,
    2004, equation 8), in [-1, 1]; 0 where all labels or all predictions are of one class."""
    support, predicted, total = table.sum(1), table.sum(0), table.sum()
    covariance = table.diagonal().sum() * total - support @ predicted
    spread = (total**2 - support @ support) * (total**2 - predicted @ predicted)
    return float(covariance) / math.sqrt(float(spread)) if float(spread) > 0 else 0.0
