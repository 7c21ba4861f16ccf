"""Several runs over one resident backbone, batched together: each with its own data order, optimizer, schedule,
selection, checkpoints and record, and each equal to the run by itself within the rounding of fp32.

Every run is an ordinary `run`, in a seat of its own (`lockstep.py`); only the forward and backward pass of a training
step is shared. A batch's loss and gradients come from the carrier together with the others', and go on from there the
ordinary way.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from tunewise.methods.attachment import attachment
from tunewise.packing.carrier import Answer, Carrier, Member, NotPackable
from tunewise.packing.compatible import packs
from tunewise.packing.lockstep import Outcome, Seat, in_lockstep
from tunewise.run import run
from tunewise.spec import RunSpec
from tunewise.store.folders import RunStore
from tunewise.store.records import RunRecord
from tunewise.tasks.build import build_task
from tunewise.tasks.contract import Task
from tunewise.training.build import build_model
from tunewise.training.events import Listener, Phase
from tunewise.training.trajectory import Keep
from tunewise.words import counted


def run_packed(
    specs: Sequence[RunSpec],
    store: RunStore,
    *,
    task: Task | None = None,
    listener: Listener | None = None,
    trajectory: Keep | None = None,
    again: bool = False,
) -> list[RunRecord]:
    """Do these runs together, or what is missing of them; returns their records in order.

    The runs must be of one kin (`compatible.packs` makes such groups). Runs whose model turns out not to be packable,
    and those that ran out of memory together, are done one after another. Raises what `run` raises, after every run
    has come to its end or its checkpoint.
    """
    listener = listener or Listener()
    task = task or build_task(specs[0])
    by_id = {spec.id: spec for spec in specs}
    missing = [spec for spec in by_id.values() if again or store.finished(spec.id) is None]
    options: dict[str, Any] = {"task": task, "trajectory": trajectory, "again": again}
    made: dict[str, RunRecord] = {}
    if len(missing) > 1:
        assert len(packs(missing, len(missing))) == 1, "runs of several kinds"
        found = _together(missing, store, task, listener, options)
        errors = [outcome.error for outcome in found if outcome.error is not None]
        for error in errors:
            if not isinstance(error, NotPackable):
                raise error
        for reason in sorted({str(error) for error in errors}):
            listener.on(Phase(f"one run at a time: {reason}"))
        made = {r.id: r for outcome in found if (r := outcome.result) is not None and r.status != "oom"}
    gc.collect()  # the pack, before others take its place
    for spec in by_id.values():
        if spec.id not in made:
            listener.check()
            made[spec.id] = run(spec, store, listener=listener, **options)
    return [made[spec.id] for spec in specs]


def _together(
    specs: Sequence[RunSpec], store: RunStore, task: Task, listener: Listener, options: Mapping[str, Any]
) -> list[Outcome[RunRecord]]:
    first = specs[0]
    carrier = Carrier(task.load_model(first.seed), first.task, prefix_dropout=first.training.prefix_dropout)
    carrier.base.to("cuda" if torch.cuda.is_available() else "cpu")
    members: dict[Seat, Member] = {}

    def job(spec: RunSpec) -> Callable[[Seat], RunRecord]:
        def in_seat(seat: Seat) -> RunRecord:
            def build(spec: RunSpec, task: Task) -> nn.Module:
                model = build_model(spec, task, fold="never")
                carrier.share(model)
                members[seat] = Member(model)
                _train_by_asking(model, seat)
                return model

            words = [f"packed with {counted(len(specs) - 1, 'other run')}"]
            return run(spec, store, listener=listener, build=build, computed=words, clock=seat.clock, **options)

        return in_seat

    def answer(questions: Mapping[Seat, dict[str, Tensor]]) -> dict[Seat, Answer]:
        seats = list(questions)
        if not carrier.members and len(seats) < 2:
            raise NotPackable("there is no other run left to go with")
        batches = [questions[seat] for seat in seats]
        answers = carrier.step([members[seat] for seat in seats], batches, [seat.stream for seat in seats])
        return dict(zip(seats, answers, strict=True))

    return in_lockstep([job(spec) for spec in specs], answer)


def _train_by_asking(model: Any, seat: Seat) -> None:
    """From now on a training step's forward asks for the loss and brings its gradients along; all else is as it was."""
    usual = model.forward
    # Written by the pack alone: a fold would write one run's columns into the weights of all.
    known = attachment(model)
    model.__dict__["tunewise"] = {known.adapter_name: replace(known, fold="auto")}

    def forward(*args: Any, **batch: Any) -> Any:
        if args or not model.training or not torch.is_grad_enabled() or "labels" not in batch:
            return usual(*args, **batch)
        batch.pop("num_items_in_batch", None)
        answer: Answer = seat.ask(batch)
        return ModelOutput(loss=cast(Tensor, _Known.apply(answer.loss, answer.gradients, *answer.parameters)))

    model.forward = forward


class _Known(torch.autograd.Function):
    """A loss whose gradients have been computed already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> Any:
        return None, None, *torch._foreach_mul(ctx.gradients, grad_loss)
