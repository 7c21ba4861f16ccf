"""A task in one file, as a user would add it: texts with any number of tags ("animals|food"), multi-label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunewise.models.head import Head
from tunewise.registry import TASKS
from tunewise.spec import DataSpec
from tunewise.tasks.contract import Prediction, Split
from tunewise.tasks.labels import read_texts
from tunewise.tasks.splits import Record, Splits, make_splits, read_parts
from tunewise.tasks.text_inputs import TextTask


class Tagging(TextTask):
    """Texts with a set of tags each; one logit a tag, binary cross-entropy."""

    metric = "micro_f1"
    metrics: Sequence[str] = ("micro_f1", "exact_match")

    @classmethod
    def recognises(cls, data: DataSpec) -> bool:
        return data.path.endswith(".tags.csv")

    @classmethod
    def make_head(cls, labels: Sequence[str], data: DataSpec | None = None) -> Head:
        return Head(
            "AutoModelForSequenceClassification",
            "a tagger of texts",
            labels=tuple(labels),
            problem_type="multi_label_classification",
        )

    @classmethod
    def read(cls, data: DataSpec) -> tuple[list[str], Splits]:
        records = read_parts(data, lambda path: read_texts(data, path))
        tags = sorted({tag for record in records["train"] for tag in record.label.split("|")})
        return tags, make_splits(data, records)

    @classmethod
    def sample_labels(cls, ids: Tensor, head: Head) -> Tensor:
        return torch.zeros(len(ids), len(head.labels), device=ids.device)

    def target(self, record: Record) -> list[float]:
        tags = record.label.split("|")
        return [float(label in tags) for label in self.labels]

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        each = F.binary_cross_entropy_with_logits(outputs.double(), labels.double(), reduction="none")
        return each.mean(1)

    def predict(self, model: nn.Module, examples: Split) -> list[Prediction]:
        rows = self.outputs(model, examples).double().sigmoid().tolist()
        return [
            {
                "prediction": "|".join(label for label, value in zip(self.labels, row, strict=True) if value > 0.5),
                **{f"probability_{label}": value for label, value in zip(self.labels, row, strict=True)},
            }
            for row in rows
        ]

    def score(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        predicted, wanted = outputs > 0, targets > 0
        both = 2 * float((predicted & wanted).sum())
        return {
            "micro_f1": both / max(1.0, float(predicted.sum() + wanted.sum())),
            "exact_match": float((predicted == wanted).all(1).double().mean()),
        }


TASKS.register("tags", Tagging)
