"""A method or a reference line, ready for training steps on one batch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tunewise.measures._device import device, synchronize
from tunewise.methods.draws import sample
from tunewise.models.head import head_modules
from tunewise.models.layers import find_targets
from tunewise.spec import MethodSpec, RunSpec, StudySpec
from tunewise.tasks.contract import Task
from tunewise.training.build import build_model
from tunewise.training.optimizers import optimizer

FLOOR = "frozen floor"
FULL = "fft"
WARM_UP = 3


@dataclass
class Stepper:
    """A method with its model, optimizer and batch."""

    label: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch: Mapping[str, Tensor]

    def step(self) -> None:
        """Forward, backward, update."""
        self.model(**self.batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def timed(self) -> float:
        """Seconds of one step, the device's queue emptied before and after."""
        synchronize()
        start = time.perf_counter()
        self.step()
        synchronize()
        return time.perf_counter() - start


def cost_lines(spec: StudySpec) -> dict[str, RunSpec]:
    """A run a method, by label, and full fine-tuning as a reference line where it is not among the methods."""
    lines = {m.label: run for m, run in zip(spec.methods, spec.runs()[: len(spec.methods)], strict=True)}
    full = next(iter(lines.values())).model_copy(update={"method": MethodSpec(name=FULL)})
    return {**lines, **({} if FULL in lines else {FULL: full})}


def stepper(label: str, spec: StudySpec, task: Task, batch: Mapping[str, Tensor]) -> Stepper:
    """The line `label`: a method as a run would train it, or the frozen floor."""
    if label == FLOOR:
        return _floor(spec, task, batch)
    run = cost_lines(spec)[label]
    model = build_model(run, task).to(device()).train()
    adamw = optimizer(model, lr=run.learning_rate, weight_decay=run.weight_decay)
    return Stepper(label, model, adamw, batch)


def probe_batch(spec: StudySpec, task: Task) -> dict[str, Tensor]:
    """The batch that is stepped: training examples drawn at random, the same for all methods."""
    return task.collate(sample(task.train, spec.training.batch_size, 0, "cost probe"))


def _floor(spec: StudySpec, task: Task, batch: Mapping[str, Tensor]) -> Stepper:
    """The frozen floor over the layers of the first method that has any (query and value where none has)."""
    model = task.load_model(0).to(device()).train()
    adapting = (m for m in spec.methods if m.name not in ("fft", "head"))
    targets, layers = next(((m.targets, m.layers) for m in adapting), ("qv", None))
    target = find_targets(model, targets, layers)[0]
    first = model.get_submodule(target.name)
    head = head_modules(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in head)
    weight: Tensor = first.weight  # type: ignore[assignment]
    if getattr(first, "bias", None) is None:
        dtype = weight.dtype if weight.is_floating_point() else torch.float32  # else packed
        first.bias = nn.Parameter(weight.new_zeros(target.out_features, dtype=dtype))
    first.bias.requires_grad_(True)
    trained = [p for p in model.parameters() if p.requires_grad]
    return Stepper(FLOOR, model, torch.optim.AdamW(trained, lr=1e-4, fused=True), batch)
