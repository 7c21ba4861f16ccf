"""Laziness: how far the fine-tuned network is from its own linearisation at W0.

    ||f(W_t) - f_lin(W_t)|| / ||f(W_t) - f(W_0)||,   f_lin(W) = f(W_0) + Df(W_0)[W - W_0],

norms over the logits of fixed examples. 0: the network moves as its tangent does, and the theory of the NTK regime
(arXiv 2402.11867) applies. W are the effective weights, so all methods are measured alike, for two sets of weights:

- the backbone alone, as in that paper: W are the adapted layers (`fft`: all), the task head is held at its values at t;
- everything trained, with the head. A new head multiplies what the backbone learns, and no linearisation contains that
  product: this one shows how far the *training* was from lazy.

Df is one Jacobian-vector product in forward mode; no Jacobian is formed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunewise.measures.base import MeasureResult, MeasureSettings, Values
from tunewise.measures.finished import Check, FinishedRun
from tunewise.methods.attachment import attachment
from tunewise.methods.delta import delta
from tunewise.methods.draws import sample
from tunewise.models.head import head_modules
from tunewise.tasks.contract import Split
from tunewise.training.linearised import head_change, linear_parts, live_change, moved_outputs

EXAMPLES = 32
"""Of the training and of the test part each, drawn at random, the same for all runs."""
BATCH = 16
Batches = list[dict[str, Tensor]]
SMALLEST = 1e-4
"""Where the logits moved by less than this part of their size, rounding dominates, and there is no distance."""


class Distances(Values):
    """Of the logits of some examples."""

    distance: float | None
    """||f - f_lin|| / ||f - f_0||; None where f has hardly moved."""
    moved: float
    """||f - f_0|| / ||f_0||."""
    agreement: float
    """Share of the examples for which f and f_lin choose the same class."""


class Point(Values):
    """Everything trained, on training and test examples; the backbone alone on training examples."""

    train: Distances
    test: Distances
    backbone: Distances


class LazinessResult(MeasureResult):
    train_examples: int
    test_examples: int
    selected: Point
    """Of the selected epoch's weights."""


@torch.no_grad()
def compute(run: FinishedRun, settings: MeasureSettings, check: Check) -> LazinessResult:
    base = run.base_in_fp32
    model = run.model if base is run.base else run.load_in_fp32(trainable=True)
    train, test = _batches(run, run.task.train), _batches(run, run.task.test)
    return LazinessResult(
        train_examples=min(EXAMPLES, len(run.task.train)),
        test_examples=min(EXAMPLES, len(run.task.test)),
        selected=_point(model, base, train, test, check),
    )


def change_of(model: nn.Module, base: nn.Module) -> dict[str, Tensor]:
    """W_t - W_0 by the base model's names of parameters: adapted layers and head, for `fft` everything. Detached."""
    done = attachment(model)
    if not done.method.passed_through:
        return {name: value.detach() for name, value in live_change(model, base).items()}
    change = {}
    for name, dense in delta(model).items():
        change[f"{name}.weight"] = dense.T if isinstance(base.get_submodule(name), Conv1D) else dense
    return {**change, **head_change(model, base)}


def _batches(run: FinishedRun, split: Split) -> Batches:
    rows = sorted(sample(split, EXAMPLES, 0, "laziness"), key=run.task.length)
    device = next(run.base.parameters()).device
    found = []
    for start in range(0, len(rows), BATCH):
        batch = run.task.collate(rows[start : start + BATCH])
        found.append({key: value.to(device) for key, value in batch.items() if key != "labels"})
    return found


def _point(model: nn.Module, base: nn.Module, train: Batches, test: Batches, check: Check) -> Point:
    change = change_of(model, base)
    heads = tuple(f"{name}." for name in head_modules(base))
    head = {name: value for name, value in change.items() if name.startswith(heads)} if heads else {}
    body = {name: value for name, value in change.items() if name not in head}
    return Point(
        train=_compared(base, change, {}, train, check),
        test=_compared(base, change, {}, test, check),
        backbone=_compared(base, body, head, train, check),
    )


def _compared(
    base: nn.Module, change: Mapping[str, Tensor], held: Mapping[str, Tensor], batches: Batches, check: Check
) -> Distances:
    pieces = []
    for inputs in batches:
        check()
        start, derivative = linear_parts(base, change, inputs, held)
        found = (start, start + derivative, moved_outputs(base, {**held, **change}, inputs))
        pieces.append([_rows(outputs, inputs) for outputs in found])
    return distances(*(torch.cat(column).double() for column in zip(*pieces)))


def _rows(outputs: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """(examples, outputs); of a language model (tokens, vocabulary), padding left out."""
    if outputs.ndim < 3:
        return outputs
    mask = inputs.get("attention_mask")
    return outputs.flatten(0, 1) if mask is None else outputs[mask.bool()]


def distances(start: Tensor, linear: Tensor, network: Tensor) -> Distances:
    """From f_0, f_lin and f: logits (examples, outputs)."""
    moved, size = float((network - start).norm()), float(start.norm())
    return Distances(
        distance=float((network - linear).norm()) / moved if moved > SMALLEST * size else None,
        moved=moved / size,
        agreement=float((network.argmax(dim=-1) == linear.argmax(dim=-1)).double().mean()),
    )
