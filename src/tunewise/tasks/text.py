"""Classification of texts and text pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunewise.models.head import Head
from tunewise.registry import TASKS
from tunewise.spec import DataSpec, ModelSpec
from tunewise.tasks.contract import Split
from tunewise.tasks.labels import load_labelled_texts
from tunewise.tasks.scores import ClassificationScores
from tunewise.tasks.splits import Record, Splits
from tunewise.tasks.text_inputs import TextTask


class TextClassification(TextTask, ClassificationScores):
    """Texts or text pairs with one label each, for an encoder or a decoder with a classification head."""

    def __init__(self, model: ModelSpec, data: DataSpec, max_length: int) -> None:
        self.positive = data.positive
        super().__init__(model, data, max_length)

    def encoding_notes(self, parts: Mapping[str, Split]) -> list[str]:
        return [*super().encoding_notes(parts), *self.describe_positive()]

    @classmethod
    def make_head(cls, labels: Sequence[str], data: DataSpec | None = None) -> Head:
        return Head(
            "AutoModelForSequenceClassification",
            "a classifier of texts",
            labels=tuple(labels),
            problem_type="single_label_classification",
        )

    @classmethod
    def read(cls, data: DataSpec) -> tuple[list[str], Splits]:
        return load_labelled_texts(data)

    def plain_line(self, data: DataSpec) -> str:
        probabilities = f"model(**{self.plain_inputs(data)}).logits.softmax(-1)[0].tolist()"
        return f"print(dict(zip(model.config.id2label.values(), {probabilities})))"

    def target(self, record: Record) -> int:
        return self.labels.index(record.label)


TASKS.register("text", TextClassification)
