"""The contract of a task. A new kind of task is one file: a subclass of `Task` that registers itself."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import BaseImageProcessor, PretrainedConfig, PreTrainedTokenizerBase

from tunewise.default_rates import Regime
from tunewise.errors import DivergedError, SpecError
from tunewise.models.checkpoint_head import CheckpointHead
from tunewise.models.head import Head
from tunewise.models.load import checkpoint_head, load_model
from tunewise.spec import DataSpec, EvaluationSpec, ModelSpec
from tunewise.store.answers import Answer
from tunewise.store.records import DataFacts
from tunewise.tasks.files import digest_by_part

Encoded = Mapping[str, Any]
"""One example, ready for `collate`: token ids without padding, or an image that is not decoded yet, and `labels`."""

Split = Sequence[Encoded]
Prediction = dict[str, str | float]
"""What is predicted of one input, by column: the prediction itself, then its scores."""

Processor = PreTrainedTokenizerBase | BaseImageProcessor


class Task(ABC):
    """A data set, read, split and encoded for one model, with its loss and metrics.

    The class methods describe the kind of task and need no encoded data, so that a plan fails within a second. The
    other methods belong to one data set. `TASKS.register(name, MyTask)` at the end of the file makes the task known
    to every command. `tunewise.tasks.text_inputs.TextTask` and `tunewise.tasks.scores.ClassificationScores` implement
    most methods for texts and for classifiers.

    Args:
        model: The pretrained model.
        data: The files and columns of the data set.
        max_length: Longest text in tokens; longer ones are truncated.

    Raises:
        DataError: A file or a row can't be used.
        ModelError: The model can't be used for this task.

    Attributes:
        metric: Key of the main metric in the result of `score`.
        evaluation: How generated answers are scored.
        lower_is_better: Metrics for which a lower value is better.
        default_length: `max_length` where a spec gives none.
        default_targets: The layers to adapt where a spec gives none.
        has_tokens: Whether inputs are sequences of tokens, so that `max_length` applies.
        rate_regime: The default learning rates that suit it: `encoder` or `language`.
        labels: The classes in order; empty where there are none.
        train: Encoded training examples; `validation` and `test` likewise.
        facts: Sizes, labels and notes, for the record of a run.
        head: The head that the model gets.

    Example:
        Text classification that is scored by whether the right label is one of the two most likely:

        >>> from tunewise.registry import TASKS
        >>> from tunewise.tasks.text import TextClassification
        >>> class TopTwo(TextClassification):
        ...     metric = "top2"
        ...     metrics = ("top2",)
        ...
        ...     def score(self, outputs, targets):
        ...         likely = outputs.topk(2).indices == targets[:, None]
        ...         return {"top2": float(likely.any(1).double().mean())}
        >>> _ = TASKS.register("top2", TopTwo)
        >>> TASKS.check("top2")
        'top2'
        >>> TASKS.unregister("top2")
    """

    metric: str
    evaluation = EvaluationSpec()
    lower_is_better: Sequence[str] = ()
    has_tokens: ClassVar[bool] = True
    rate_regime: ClassVar[Regime] = "encoder"
    default_length: ClassVar[int] = 128
    default_targets: ClassVar[str] = "qv"
    model_spec: ModelSpec
    labels: list[str]
    train: Split
    validation: Split
    test: Split
    facts: DataFacts
    head: Head
    own_head: CheckpointHead | None = None

    @abstractmethod
    def __init__(self, model: ModelSpec, data: DataSpec, max_length: int) -> None: ...

    # --- the kind of task -------------------------------------------------------------------------

    @classmethod
    def recognises(cls, data: DataSpec) -> bool:
        """Whether the layout of the data shows that it is for this task, where a spec names no task."""
        return False

    @classmethod
    def recognises_model(cls, config: PretrainedConfig) -> bool:
        """Whether a transformers configuration is one of a model for this task, where a plan names no task."""
        return False

    @classmethod
    def check_scores(cls, metric: str | None, evaluation: EvaluationSpec) -> None:
        """Raise `SpecError` for a main metric, or settings of generated answers, that no data of this task has."""
        if unused := evaluation.of_answers:
            raise SpecError(f"{unused[0]} is for generated answers, and this task has none; see --task generation")

    @classmethod
    def read_labels(cls, data: DataSpec) -> list[str]:
        """The classes in order; empty where there are none. Raises `DataError`."""
        return []

    @classmethod
    def digest(cls, data: DataSpec) -> str:
        """sha256 (64 hex digits) over the content of all files of the data. Raises `DataError`."""
        return digest_by_part(data)

    @classmethod
    @abstractmethod
    def make_head(cls, labels: Sequence[str], data: DataSpec | None = None) -> Head:
        """The head for these classes and, where given, this data."""

    @classmethod
    @abstractmethod
    def load_processor(cls, model: ModelSpec, data: DataSpec) -> Processor:
        """The tokenizer or image processor of the model; has `save_pretrained`."""

    @classmethod
    @abstractmethod
    def sample_inputs(cls, model: nn.Module, head: Head, batch: int, length: int) -> dict[str, Tensor]:
        """Inputs with labels and without content, on the device of the model; on the meta device they have shapes only,
        for forecasts of memory and cost.

        Args:
            model: A transformers model with `head`.
            head: What `make_head` returned.
            batch: Number of examples.
            length: Tokens of each example; ignored where `has_tokens` is false.

        Raises:
            ModelError: `length` is above the limit of the model.
        """

    # --- one data set -----------------------------------------------------------------------------

    @classmethod
    def reopen(cls, model: ModelSpec, data: DataSpec, max_length: int, labels: Sequence[str]) -> Self:
        """The task of a finished run, to predict with: a subclass that can do without the run's data does."""
        return cls(model, data, max_length)

    @property
    @abstractmethod
    def metrics(self) -> Sequence[str]:
        """All keys of the result of `score`, the usual main metric first."""

    @abstractmethod
    def collate(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        """A padded batch with `labels`; the first dimension of each tensor is the example."""

    @abstractmethod
    def describe(self, batch: dict[str, Tensor]) -> str:
        """A batch in words: `16 texts (1,024 tokens with padding)`."""

    @property
    def has_trained_head(self) -> bool:
        """Whether the model starts with the checkpoint's own head, so that it can answer before it is trained."""
        return self.head.pretrained or (self.own_head is not None and self.own_head.order is not None)

    def length(self, example: Encoded) -> int:
        """Tokens of an example, to batch examples of similar length; 1 where all have the same size."""
        return 1

    def longest(self) -> int | None:
        """Tokens of the longest training example; None where inputs are not tokens."""
        return max(map(self.length, self.train)) if self.has_tokens else None

    def load_model(self, seed: int) -> nn.Module:
        """The pretrained model with a new head, which depends on `seed` alone."""
        pad_token_id = getattr(getattr(self, "tokenizer", None), "pad_token_id", None)
        return load_model(self.model_spec, self.head, seed=seed, pad_token_id=pad_token_id)

    def reduce_outputs(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What to store of a batch of outputs in order to score the split, (batch, numbers): the logits of classes, or
        sums over tokens where the logits of a split would not fit into memory."""
        return logits.float()

    def targets(self, split: Split) -> Tensor:
        """What the reduced outputs of a split are scored against; the first dimension is the example."""
        return torch.tensor([example["labels"] for example in split])

    def outputs(self, model: nn.Module, examples: Split) -> Tensor:
        """The reduced outputs of a batch, on the CPU. Raises `DivergedError` where they are not finite."""
        device = next(model.parameters()).device
        batch = {key: value.to(device) for key, value in self.collate(examples).items()}
        labels = batch.pop("labels")
        outputs = self.reduce_outputs(model(**batch).logits, labels).cpu()
        if not bool(torch.isfinite(outputs).all()):
            raise DivergedError("the model's outputs are not finite; lower the learning rate")
        return outputs

    @abstractmethod
    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Loss of each example, fp64, in nats, (examples,).

        Args:
            outputs: The logits of a batch, or what `reduce_outputs` made of them.
            labels: The labels of the batch, or the result of `targets`.
        """

    def units(self, labels: Tensor) -> int:
        """What the mean loss of a training batch is a mean over: its examples, or its target tokens."""
        return len(labels)

    def weights(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Weight of each example in the mean loss of a split, fp64: 1, or its number of target tokens."""
        return torch.ones(len(labels), dtype=torch.float64)

    def generated(self, split: Split) -> Sequence[int]:
        """The places of the examples to which answers are generated, beside the outputs that all have; none, unless a
        task overrides this together with `generate` and `grade`."""
        return ()

    def generate(self, model: nn.Module, examples: Split) -> list[str]:
        """The model's answers to a batch of examples."""
        raise NotImplementedError

    def grade(self, examples: Split, texts: Sequence[str]) -> tuple[dict[str, float], list[Answer]]:
        """Metrics of the answers to examples, beside those of `score`, and each answer with its own scores."""
        raise NotImplementedError

    @abstractmethod
    def score(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Metrics of a split, from its reduced outputs and `targets`."""

    def constant_scores(self, split: Split) -> dict[str, float]:
        """The best value of each metric that always predicting one and the same thing reaches on a split, by the metric
        itself: what a method reaches that has learned nothing. Metrics without such a prediction are left out."""
        return {}

    def confusion(self, outputs: Tensor, targets: Tensor) -> list[list[int]] | None:
        """Confusion matrix: rows are true classes, columns are predictions; None where there are no classes."""
        return None

    def set_scores(self, metric: str | None, evaluation: EvaluationSpec) -> None:
        """Choose the main metric (None: the task's own) and how generated answers are scored."""
        self.metric = metric or self.metric
        self.evaluation = evaluation

    def try_metric(self) -> None:  # noqa: B027 (nothing to do for most tasks)
        """Call a main metric of the user's own once, before anything is trained. Raises `SpecError` where it fails."""

    # --- prediction of new data -------------------------------------------------------------------

    def read_inputs(self, data: DataSpec) -> tuple[list[str], Split]:
        """Where each row of `data.path` stands, and its input, encoded, with any label: the data needs none. Raises
        `DataError`."""
        raise SpecError(f"the task {type(self).__name__} does not predict new data (it has no read_inputs)")

    def predict(self, model: nn.Module, examples: Split) -> list[Prediction]:
        """The predictions of a batch of what `read_inputs` returned."""
        raise SpecError(f"the task {type(self).__name__} does not predict new data (it has no predict)")

    def plain_code(self, source: str, data: DataSpec) -> tuple[str, str] | None:
        """How to predict one input with a `model` and without tunewise: names to import from transformers, and a line
        of Python that prints the prediction. None where the task does not say.

        Args:
            source: Arguments that load the base model from its folder or hub: `'roberta-base', revision='e2da8e'`.
            data: The data of the run.
        """
        return None

    def set_parts(self, parts: Mapping[str, Split], input_size: str, notes: Sequence[str]) -> None:
        """Store the encoded parts and fill in `facts`; for use in `__init__`. `input_size`: `at most 128 tokens`."""
        self.train, self.validation, self.test = parts["train"], parts["validation"], parts["test"]
        sizes = {part: len(split) for part, split in parts.items()}
        self.own_head = checkpoint_head(self.model_spec, self.head)
        notes = [*notes, *([self.own_head.note] if self.own_head else [])]
        self.facts = DataFacts(**sizes, labels=self.labels, input_size=input_size, notes=notes)

    def first_examples(self, count: int) -> Self:
        """A copy with the first `count` training examples and nothing to evaluate on, small enough to pickle."""
        small = copy.copy(self)
        small.train, small.validation, small.test = self.train[:count], [], []
        return small
