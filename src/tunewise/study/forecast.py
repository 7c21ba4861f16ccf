"""What each method would train, need and be bounded by, known before anything is loaded: `tunewise plan`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Unpack

from pydantic import BaseModel, ConfigDict, Field

from tunewise.catalog import get_method
from tunewise.models.head import Head
from tunewise.models.load import dtype_name
from tunewise.spec import MethodSpec, ModelSpec, TrainingSpec
from tunewise.study.forecast_step import Step, StepSettings, StepSetup, equivalent_method, forecast_step
from tunewise.tasks.contract import Task
from tunewise.theory import (
    information_bound,
    rank_for_existence,
    rank_for_generic_features,
    rank_without_spurious_minima,
    trained_parameters,
)

PROCESS_BYTES = 500 * 2**20
"""About what Python, torch, transformers and peft take in a CPU process, whatever is trained."""
GLIBC_KEEPS = 1.8
"""The largest measured ratio of a process's memory above its libraries to that of its tensors, with glibc's default
settings: it keeps freed blocks below 32 MB."""


def describe_overhead(device: str) -> str:
    """In words: what a machine needs beside the tensors that a forecast counts."""
    if device == "cuda":
        return "Beside them a GPU holds its context, and what its allocator can't use of its blocks."
    return (
        f"A process takes about {PROCESS_BYTES / 2**30:.1f} GB more for its libraries, and with glibc's default "
        f"settings it may keep freed blocks: up to {GLIBC_KEEPS:g} times the memory above was seen. "
        "MALLOC_MMAP_THRESHOLD_=1048576 in the environment prevents that, and costs some time."
    )


class MethodForecast(BaseModel):
    """One method. Bytes are those of the tensors alive at the worst moment of a step. On a GPU that is the allocator's
    peak (`max_memory_allocated`); on a CPU what a process holds above its libraries where freed blocks
    go back to the system, as in the cost probe of `tunewise compare`; `describe_overhead` says what comes on top."""

    model_config = ConfigDict(frozen=True)

    method: str
    rank: int | None = Field(description="None where there is none: fft, head, peft:ia3")
    trainable_parameters: int = Field(description="head included")
    adapter_parameters: int
    head_parameters: int
    trainable_share: float = Field(description="of what full fine-tuning trains")
    memory_bytes: int = Field(description="weights, optimizer, links, and what a step adds at its worst moment")
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    link_bytes: int = Field(description="in a chain's last link: W0's values under finished links, and their factors")
    activation_bytes: int = Field(description="kept between forward and backward")
    temporary_bytes: int = Field(description="at the worst moment, beyond what is kept")
    disk_bytes: int = Field(description="of the adapter that stays")
    coverage: str = Field(description="in words: the share of the block weights that is adapted, and what is not")
    start: str = Field(description="in words: how attaching changes the outputs; empty where it does not")
    disk_bytes_running: int = Field(
        description="while training: two checkpoints, a third being written, the best epoch"
    )
    information_bound: float | None = Field(
        description="on the expected gap, in the loss's units; None without samples"
    )
    rank_for_existence: int | None
    rank_without_spurious_minima: int | None
    rank_for_generic_features: int | None


def step_settings(model: ModelSpec, training: TrainingSpec, device: Literal["cpu", "cuda"]) -> StepSettings:
    """How a spec's steps are computed, without their batches."""
    return {
        "dtype": dtype_name(model, on_gpu=device == "cuda"),
        "quantization": model.quantization,
        "device": device,
        "checkpointing": training.gradient_checkpointing,
        "accumulation": training.gradient_accumulation_steps > 1,
        "optimizer": training.optimizer,
    }


def forecast_methods(
    config: object,
    task: type[Task],
    head: Head,
    methods: Sequence[MethodSpec],
    *,
    samples: int | None = None,
    **settings: Unpack[StepSettings],
) -> list[MethodForecast]:
    """One forecast a method, in their order. `config` is a transformers configuration, `samples` the number N of
    training examples. Raises `ModelError` where a method does not fit the model's shapes."""
    setup = StepSetup(config, task, head, **settings)
    steps: dict[str, Step] = {}
    forecasts = []
    for method in methods:
        stand_in = equivalent_method(method)
        key = stand_in.model_dump_json()
        if key not in steps:
            steps[key] = forecast_step(setup, stand_in)
        forecasts.append(_forecast_method(method, steps[key], head, samples, setup))
    return forecasts


def _forecast_method(
    method: MethodSpec, step: Step, head: Head, samples: int | None, setup: StepSetup
) -> MethodForecast:
    row = get_method(method.name)
    links_kept = _kept_of_links(method, step, folded=setup.dtype == "float32" and setup.quantization == "none")
    total = step.weights + step.optimizer + links_kept + step.working
    stored = _stored(method, step)
    outputs = head.outputs or 1
    by_table = row.adapts and not row.passed_through  # else as counted
    bounded = trained_parameters(method.name, step.shapes, method.rank, method.links) if by_table else step.adapter
    shape = max(step.shapes, default=(1, 1))
    thresholds = samples is not None and row.adapts and head.outputs is not None
    return MethodForecast(
        method=method.label,
        rank=method.rank if row.takes_rank else None,
        trainable_parameters=round(step.trainable),
        adapter_parameters=round(step.adapter),
        head_parameters=round(step.head),
        trainable_share=step.trainable / step.parameters,
        memory_bytes=round(total),
        weight_bytes=round(step.weights),
        gradient_bytes=round(step.gradients),
        optimizer_bytes=round(step.optimizer),
        link_bytes=round(links_kept),
        activation_bytes=round(step.kept),
        temporary_bytes=round(max(0.0, step.working - step.kept)),
        coverage=step.coverage.describe() if step.coverage else "",
        start=row.describe_start(method.rank),
        disk_bytes=round(stored),
        disk_bytes_running=round(2 * stored + 3 * (stored + step.optimizer)),
        information_bound=float(information_bound(int(bounded), samples)) if samples and bounded else None,
        rank_for_existence=int(rank_for_existence(outputs, samples)) if thresholds and samples else None,
        rank_without_spurious_minima=(
            int(rank_without_spurious_minima(outputs, samples)) if thresholds and samples else None
        ),
        rank_for_generic_features=(
            int(rank_for_generic_features(shape, outputs, samples)) if thresholds and samples else None
        ),
    )


def _links(method: MethodSpec) -> int:
    """Links of the whole run; 2 where they are counted in epochs, whose number is not known here."""
    row = get_method(method.name)
    return method.links or (2 if method.restart_every else row.chain.links if row.chain else None) or 1


def _kept_of_links(method: MethodSpec, step: Step, *, folded: bool) -> float:
    """Bytes that the last link of a chain holds beyond what a first link does: the factors of the links before it
    (fp32), and W0's values where those are folded into the weights (`methods.adapters.fold`): all of them under
    low-rank links, the touched columns under columns. Only weights in fp32 are folded into."""
    row, finished = get_method(method.name), _links(method) - 1
    if not row.adapts or not finished:
        return 0.0
    total = 0.0
    for outputs, inputs in step.shapes:
        if row.trained in ("AB", "B") and row.where == "random":
            total += 4 * finished * method.rank * (outputs + inputs) + 4 * outputs * inputs * folded
        else:
            columns = min(finished * method.rank, inputs - method.rank)
            total += 4 * finished * method.rank * outputs + 4 * outputs * columns * folded
    return total


def _stored(method: MethodSpec, step: Step) -> float:
    """Bytes of the saved folder: fp32 factors A and B of every link (columns too: a stock reader wants both), the
    head; or what changed."""
    row = get_method(method.name)
    if not row.adapts:
        return step.gradients
    links = _links(method)
    pair = 1.0 if row.trained in ("AB", "peft") else 2.0  # a frozen factor is about as large
    return 4 * (links * pair * step.adapter + step.head)
