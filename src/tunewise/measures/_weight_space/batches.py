"""The trained model with adapters merged, without PEFT's layers, and the fixed batches on which its loss is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from tunewise.errors import MeasureError
from tunewise.measures._device import device
from tunewise.measures.finished import FinishedRun
from tunewise.measures.updates.refusal import refusal
from tunewise.methods.draws import stream


def plain_model(run: FinishedRun) -> nn.Module:
    """A merged model of the selected epoch in fp32, without gradients. Raises `MeasureError` where merging fails."""
    model: Any = run.load_in_fp32()
    if isinstance(model, PeftModel):
        with refusal(MeasureError, f"{run.spec.method.name} can't be merged into the weights"):
            model = model.merge_and_unload()
    return model.eval().requires_grad_(False).to(device())


@dataclass(frozen=True)
class FixedBatches:
    """Batches of one size, the same at every point and for every method. `losses`: (outputs, labels) -> (examples,)."""

    inputs: Sequence[Mapping[str, Tensor]]
    labels: Sequence[Tensor]
    losses: Callable[[Tensor, Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.inputs)

    @torch.no_grad()
    def evaluate(self, model: Callable[..., Any]) -> Tensor:
        """Mean loss of each batch, fp64 (batches,), on the device."""
        return torch.stack(
            [
                self.losses(model(**inputs).logits, labels).double().mean()
                for inputs, labels in zip(self.inputs, self.labels, strict=True)
            ]
        )


def fixed_batches(run: FinishedRun, count: int, seed: int) -> FixedBatches:
    """`count` batches of training examples, drawn by `seed` alone: the same for all runs on one data set."""
    size = run.spec.training.batch_size
    size = min(size, len(run.task.train) // count)
    if size < 1:
        raise MeasureError(f"{len(run.task.train)} training examples do not make {count} batches; ask for fewer")
    order = torch.randperm(len(run.task.train), generator=stream(seed, "landscape", "batches")).tolist()
    rows = [run.task.train[i] for i in order[: count * size]]
    batches = [run.task.collate(rows[i : i + size]) for i in range(0, len(rows), size)]
    there = [{key: value.to(device()) for key, value in batch.items()} for batch in batches]
    labels = [batch.pop("labels") for batch in there]
    return FixedBatches(there, labels, run.task.losses)
