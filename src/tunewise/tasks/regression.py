"""Regression of texts and text pairs on a number: squared error, correlations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from tunewise.errors import DataError
from tunewise.models.head import Head
from tunewise.spec import DataSpec, ModelSpec
from tunewise.store.records import DataFacts
from tunewise.tasks.classification import Example, check_columns, read_texts
from tunewise.tasks.contract import Split, StandIn
from tunewise.tasks.splits import PARTS, Record, check_fractions, make_splits
from tunewise.tasks.text_inputs import TextInputs, two_sentences


class TextRegression(TextInputs):
    """Texts or text pairs with a number each (STS-B's similarity); one output, trained on squared error.

    The squared error is also the negative log-likelihood, in nats and less its constant, of a Gaussian with variance
    1/2 around the output: so losses and gaps stand beside those of other tasks, though not to be compared with them.
    """

    metric = "pearson"
    metrics: Sequence[str] = ("pearson", "spearman", "mse")
    lower_is_better: Sequence[str] = ("mse",)
    head = Head("regression")

    def __init__(self, model: ModelSpec, data: DataSpec, max_length: int) -> None:
        super().__init__(model, max_length)
        self.labels: list[str] = []
        parts, notes = _load(data)
        self.train, self.validation, self.test = (self.encode(parts[part]) for part in PARTS)
        values = self.targets(self.train).double()
        notes.append(
            f"Targets of train lie between {float(values.min()):g} and {float(values.max()):g}, mean "
            f"{float(values.mean()):.4g}, variance {float(values.var(correction=0)):.4g}. Losses are squared errors "
            "(the negative log-likelihood in nats, less its constant, of a Gaussian of variance 1/2)."
        )
        self.facts = DataFacts(
            train=len(self.train),
            validation=len(self.validation),
            test=len(self.test),
            labels=[],
            notes=[*notes, *self.cut_notes(self.train, self.validation, self.test)],
        )

    def keep(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The outputs, (batch, 1)."""
        return logits.float()

    def targets(self, split: Split) -> Tensor:
        """The numbers, fp32 as a model takes them."""
        return torch.tensor([example["labels"] for example in split])

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Squared error of each example, fp64."""
        return (outputs[:, 0].double() - labels.double()) ** 2

    def weights(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """One example, one vote."""
        return torch.ones(len(labels), dtype=torch.float64)

    def score(self, kept: Tensor, targets: Tensor) -> dict[str, float]:
        """Pearson's and Spearman's correlation, in [-1, 1] (0 where all outputs or all targets are one number), and
        the mean squared error."""
        found, wanted = kept[:, 0].double().numpy(), targets.double().numpy()
        return {
            "pearson": pearson(found, wanted),
            "spearman": pearson(rankdata(found), rankdata(wanted)),
            "mse": float(np.mean((found - wanted) ** 2)),
        }

    def confusion(self, kept: Tensor, targets: Tensor) -> None:
        return None


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation; 0 where one of them does not vary."""
    x, y = a - a.mean(), b - b.mean()
    spread = math.sqrt(float(x @ x) * float(y @ y))
    return max(-1.0, min(1.0, float(x @ y) / spread)) if spread > 0 else 0.0


def regression_stand_in(model: ModelSpec, data: DataSpec, labels: list[str]) -> StandIn:
    """Two sentences for any model with one output."""
    return two_sentences(model, Head("regression"))


def _load(spec: DataSpec) -> tuple[dict[str, list[Example]], list[str]]:
    check_columns({"text": spec.text, "text_pair": spec.text_pair, "label": spec.label})
    check_fractions(spec)
    paths = {"train": spec.path, "validation": spec.validation, "test": spec.test}
    read = {part: [_number(r, spec) for r in read_texts(spec, p)] for part, p in paths.items() if p is not None}
    train = read.pop("train")
    if len({record.content[2] for record in train}) < 2:
        raise DataError(f"{spec.path}: all {len(train)} examples have one and the same number in {spec.label!r}")
    splits = make_splits(spec, train, read)
    return {part: [Example(*record.content) for record in getattr(splits, part)] for part in PARTS}, splits.notes


def _number(record: Record, spec: DataSpec) -> Record:
    """The record with its label as a number, in a stratum with all others."""
    try:
        value = float(record.label)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{record.where}: column {spec.label!r} is {record.label[:40]!r}, which is no number")
    return Record(record.key, repr(value), "", record.where, (*record.content, value))
