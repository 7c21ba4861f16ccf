"""Regression of texts and text pairs on a number: squared error, correlations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata
from torch import Tensor, nn

from tunewise.errors import DataError
from tunewise.models.head import Head
from tunewise.registry import TASKS
from tunewise.spec import DataSpec
from tunewise.tasks.contract import Prediction, Split
from tunewise.tasks.labels import NUMBER, read_texts
from tunewise.tasks.splits import Record, Splits, make_splits, read_parts
from tunewise.tasks.text_inputs import TextTask


class TextRegression(TextTask):
    """Texts or text pairs with a number each (STS-B's similarity); one output, trained on squared error.

    The squared error is also the negative log-likelihood, in nats and without its constant, of a Gaussian with
    variance 1/2 around the output.
    """

    metric = "pearson"
    metrics: Sequence[str] = ("pearson", "spearman", "mse")
    lower_is_better: Sequence[str] = ("mse",)

    @classmethod
    def make_head(cls, labels: Sequence[str], data: DataSpec | None = None) -> Head:
        return Head(
            "AutoModelForSequenceClassification", "a model with one number as output", problem_type="regression"
        )

    @classmethod
    def read(cls, data: DataSpec) -> tuple[list[str], Splits]:
        records = read_parts(data, lambda path: [_with_number(r, data) for r in read_texts(data, path)])
        train = records["train"]
        if len({record.label for record in train}) < 2:
            raise DataError(f"{data.path}: all {len(train)} examples have one and the same number in {data.label!r}")
        return [], make_splits(data, records)

    def target(self, record: Record) -> float:
        return float(record.label)

    def encoding_notes(self, parts: Mapping[str, Split]) -> list[str]:
        values = self.targets(parts["train"]).double()
        return [
            f"Targets of train lie between {float(values.min()):g} and {float(values.max()):g}, mean "
            f"{float(values.mean()):.4g}, variance {float(values.var(correction=0)):.4g}. Losses are squared errors "
            "(the negative log-likelihood in nats, less its constant, of a Gaussian of variance 1/2).",
            *super().encoding_notes(parts),
        ]

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Squared error of each example, fp64."""
        return (outputs[:, 0].double() - labels.double()) ** 2

    def constant_scores(self, split: Split) -> dict[str, float]:
        """Of the mean target."""
        targets = self.targets(split)
        return self.score(targets.double().mean().expand(len(targets), 1), targets)

    def predict(self, model: nn.Module, examples: Split) -> list[Prediction]:
        """`prediction`: the number."""
        return [{"prediction": number} for number in self.outputs(model, examples)[:, 0].tolist()]

    def plain_line(self, data: DataSpec) -> str:
        return f"print(model(**{self.plain_inputs(data)}).logits.item())"

    def score(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Pearson's and Spearman's correlation, in [-1, 1] (0 where all outputs or all targets are one number), and
        the mean squared error."""
        predicted, wanted = outputs[:, 0].double().numpy(), targets.double().numpy()
        return {
            "pearson": pearson(predicted, wanted),
            "spearman": pearson(rankdata(predicted), rankdata(wanted)),
            "mse": float(np.mean((predicted - wanted) ** 2)),
        }


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation; 0 where one of them does not vary."""
    x, y = a - a.mean(), b - b.mean()
    spread = math.sqrt(float(x @ x) * float(y @ y))
    return max(-1.0, min(1.0, float(x @ y) / spread)) if spread > 0 else 0.0


def _with_number(record: Record, spec: DataSpec) -> Record:
    """The record with its label as a number, in one stratum with all others."""
    value = float(record.label) if NUMBER.fullmatch(record.label) else math.nan
    if not math.isfinite(value):
        raise DataError(f"{record.where}: column {spec.label!r} is {record.label[:40]!r}, which is no number")
    return Record(record.key, repr(value), "", record.where, record.content)


TASKS.register("regression", TextRegression)
