"""What a task is: data, a model with the right head, a collator, scores. A new kind of task is one file with these."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from tunewise.models.head import Head
from tunewise.store.records import DataFacts

Encoded = Mapping[str, Any]
"""One example, ready for `collate`: token ids not yet padded, or an image not yet decoded; `labels` among its keys."""

Split = Sequence[Encoded]


@dataclass(frozen=True)
class StandIn:
    """What is known of a task without its data: the model's end, inputs to try a model on, and what makes inputs."""

    head: Head
    inputs: dict[str, Tensor]
    processor: Any
    """A tokenizer or an image processor; has `save_pretrained`."""
    pad_token_id: int | None


class Task(Protocol):
    """A data set, ready for a model."""

    metric: str
    """The main metric's key in `score`'s result; one may set another of `metrics`."""
    lower_is_better: Sequence[str]
    """Metrics of which less is better."""
    labels: list[str]
    """The classes; none where there are none."""
    train: Split
    validation: Split
    test: Split
    facts: DataFacts
    """Sizes, labels and notes, for the record."""

    @property
    def metrics(self) -> Sequence[str]:
        """All keys of `score`'s result, the task's usual main metric first."""
        ...

    def collate(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        """A padded batch with labels."""
        ...

    def describe(self, batch: dict[str, Tensor]) -> str:
        """A batch in words: `16 texts (1,024 tokens with padding)`."""
        ...

    def length(self, example: Encoded) -> int:
        """Tokens, for batches of like lengths in evaluation; 1 where all examples are of one size."""
        ...

    def load_model(self, seed: int) -> nn.Module:
        """A fresh base model with an untrained head; the same one for one seed."""
        ...

    def keep(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What is kept of a batch's outputs to score the split by, (batch, numbers): the logits of classes, or sums
        over tokens, whose logits would fill the memory."""
        ...

    def targets(self, split: Split) -> Tensor:
        """What the kept outputs of a split are scored against, (examples,)."""
        ...

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Loss of each example, fp64, in nats: (examples,). Takes a batch's logits with its labels, or what `keep`
        made of them with `targets`."""
        ...

    def weights(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """How much each example counts in a split's mean loss, fp64: 1, or its number of target tokens."""
        ...

    def score(self, kept: Tensor, targets: Tensor) -> dict[str, float]:
        """Metrics of a whole split."""
        ...

    def confusion(self, kept: Tensor, targets: Tensor) -> list[list[int]] | None:
        """Rows true class, columns predicted; None where there are no classes."""
        ...


@runtime_checkable
class Generating(Protocol):
    """A task whose validation and test are scored by what the model generates, too."""

    def generated(self, model: nn.Module, examples: Split) -> Tensor:
        """What is kept of it, (examples, numbers): columns after those of `Task.keep`."""
        ...


def longest(task: Task) -> int:
    """Tokens of the longest training example: what the largest batch is padded to."""
    return max(task.length(example) for example in task.train)


def beginning(task: Task, examples: int) -> Task:
    """The task with no more than its first `examples` training examples, and nothing to evaluate on: small enough to
    be handed to another process."""
    small = copy.copy(task)
    small.train, small.validation, small.test = task.train[:examples], [], []
    return small
