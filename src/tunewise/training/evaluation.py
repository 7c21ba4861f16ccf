"""Loss and metrics of a whole split, in eval mode: the only place where a model is scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from tunewise.errors import out_of_memory_noted
from tunewise.methods.draws import sample
from tunewise.spec import RunSpec
from tunewise.store.answers import Answer
from tunewise.store.records import Scores
from tunewise.tasks.contract import Split, Task


@dataclass(frozen=True)
class Evaluation:
    """Scores, and what is behind them in the order of the split: reduced outputs and targets, on the CPU, and the
    answers, where the task generates some."""

    scores: Scores
    logits: Tensor
    labels: Tensor
    answers: list[Answer] = field(default_factory=list)

    def extended(self, metrics: dict[str, float], answers: list[Answer]) -> Evaluation:
        """With further metrics and answers."""
        scores = self.scores.model_copy(update={"metrics": {**self.scores.metrics, **metrics}})
        return replace(self, scores=scores, answers=[*self.answers, *answers])


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: Task,
    split: Split,
    *,
    batch_size: int,
    on_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Score `model` on all of `split`: the metrics of the task, and the mean loss in nats over examples or target
    tokens, not over batches. Raises `DivergedError` where logits are not finite."""
    training = model.training
    model.eval()
    try:
        with out_of_memory_noted(f"in an evaluation of {batch_size} examples at a time"):
            outputs = _outputs(model, task, split, batch_size, on_batch)
            answered = task.generated(split)
            examples = [split[place] for place in answered]
            texts = _texts(model, task, examples, batch_size, on_batch)
    finally:
        model.train(training)
    labels = task.targets(split)
    weights = task.weights(outputs, labels)
    metrics, answers = task.grade(examples, texts) if texts else ({}, [])
    scores = Scores(
        loss=float((task.losses(outputs, labels) * weights).sum() / weights.sum()),
        metrics={**metrics, **task.score(outputs, labels)},
        examples=len(split),
    )
    return Evaluation(scores, outputs, labels, answers)


def gap_sample(spec: RunSpec, task: Task) -> Split:
    """The training examples that the gap is taken from, the same for all methods and seeds: all in their order, or a
    random sample of `gap_samples`."""
    count = spec.evaluation.gap_samples
    return task.train if len(task.train) <= count else sample(task.train, count, spec.data.split_seed, "gap")


def _outputs(model: nn.Module, task: Task, split: Split, batch_size: int, on_batch: Callable[[], None]) -> Tensor:
    """The reduced outputs of all examples, in their order."""
    batches = batches_by_length(task, split, batch_size)
    pieces: list[Tensor] = []
    for places in batches:
        on_batch()
        pieces.append(task.outputs(model, [split[place] for place in places]))
    outputs = torch.empty_like(torch.cat(pieces))
    outputs[torch.tensor([place for places in batches for place in places])] = torch.cat(pieces)
    return outputs


def _texts(model: nn.Module, task: Task, examples: Split, batch_size: int, on_batch: Callable[[], None]) -> list[str]:
    """The model's answers to these examples."""
    texts = [""] * len(examples)
    for places in batches_by_length(task, examples, batch_size):
        on_batch()
        for place, text in zip(places, task.generate(model, [examples[i] for i in places]), strict=True):
            texts[place] = text
    return texts


def batches_by_length(task: Task, split: Split, batch_size: int) -> list[list[int]]:
    """The places of a split in batches of similar lengths, the longest first."""
    order = sorted(range(len(split)), key=lambda i: -task.length(split[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
