"""Loss and metrics of a whole split, in eval mode: the only place where a model is scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tunewise.errors import out_of_memory_noted
from tunewise.store.records import Scores
from tunewise.tasks.contract import Split, Task


@dataclass(frozen=True)
class Evaluation:
    """Scores, and the reduced outputs and targets behind them, on the CPU, in the order of the split."""

    scores: Scores
    logits: Tensor
    labels: Tensor


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
    batches = batches_by_length(task, split, batch_size)
    pieces: list[Tensor] = []
    try:
        with out_of_memory_noted(f"in an evaluation of {batch_size} examples at a time"):
            for places in batches:
                on_batch()
                rows = [split[place] for place in places]
                outputs = task.outputs(model, rows)
                generated = None if split is task.train else task.generate(model, rows)
                pieces.append(outputs if generated is None else torch.cat([outputs, generated.to(outputs)], dim=1))
    finally:
        model.train(training)
    logits = torch.empty_like(torch.cat(pieces))
    logits[torch.tensor([place for places in batches for place in places])] = torch.cat(pieces)
    labels = task.targets(split)
    weights = task.weights(logits, labels)
    scores = Scores(
        loss=float((task.losses(logits, labels) * weights).sum() / weights.sum()),
        metrics=task.score(logits, labels),
        examples=len(split),
    )
    return Evaluation(scores, logits, labels)


def batches_by_length(task: Task, split: Split, batch_size: int) -> list[list[int]]:
    """The places of a split in batches of similar lengths, the longest first."""
    order = sorted(range(len(split)), key=lambda i: -task.length(split[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
