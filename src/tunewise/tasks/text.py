"""Classification of texts and text pairs."""

from __future__ import annotations

from tunewise.models.head import Head
from tunewise.spec import DataSpec, ModelSpec
from tunewise.store.records import DataFacts
from tunewise.tasks.classification import load_classification
from tunewise.tasks.contract import StandIn
from tunewise.tasks.scores import ClassificationScores
from tunewise.tasks.text_inputs import TextInputs, two_sentences


class TextClassification(TextInputs, ClassificationScores):
    """Texts or text pairs with one label each, for an encoder or a decoder with a classification head."""

    def __init__(self, model: ModelSpec, data: DataSpec, max_length: int) -> None:
        super().__init__(model, max_length)
        read = load_classification(data)
        self.labels = read.labels
        self.head = Head("text", tuple(read.labels))
        self.train, self.validation, self.test = map(self.encode, (read.train, read.validation, read.test))
        self.facts = DataFacts(
            train=len(self.train),
            validation=len(self.validation),
            test=len(self.test),
            labels=self.labels,
            notes=[*read.notes, *self.cut_notes(self.train, self.validation, self.test)],
        )


def text_stand_in(model: ModelSpec, data: DataSpec, labels: list[str]) -> StandIn:
    """Two sentences for any classifier of texts."""
    return two_sentences(model, Head("text", tuple(labels)))
