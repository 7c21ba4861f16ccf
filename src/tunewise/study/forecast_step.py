"""One training step of a method, forecast from the model's configuration: what is trained, and the bytes it takes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tunewise.catalog import get_method
from tunewise.errors import ModelError
from tunewise.methods.attachment import attachment
from tunewise.models.head import Head, prepare
from tunewise.spec import MethodSpec
from tunewise.study.live_memory import LiveMemory, fused_kernels
from tunewise.tasks.contract import Task
from tunewise.training.build import attach_method, count_parameters

Dtype = Literal["fp32", "bf16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

DEEP = 5
"""From this many layers on, two shallow models are stepped and extrapolated."""


@dataclass(frozen=True)
class Step:
    """Counts and bytes. All are linear in the number of layers, but `peak`, the largest of several that are."""

    parameters: float
    trainable: float
    adapter: float
    head: float
    weights: float
    gradients: float
    kept: float
    """Live between forward and backward: what autograd keeps, and the output."""
    forward_peak: float
    """With the batch itself, as `peak`."""
    peak: float
    shapes: tuple[tuple[int, int], ...]
    """(outputs n, inputs m) of every adapted layer."""
    coverage: str
    """Which share of the block weights is adapted, in words."""

    @property
    def working(self) -> float:
        """Bytes above weights and optimizer state, at the worst moment of a step."""
        return max(self.peak, self.forward_peak, self.gradients)


def forecast_step(
    config: Any,
    task: type[Task],
    head: Head,
    method: MethodSpec,
    *,
    batch: int,
    length: int,
    dtype: Dtype = "fp32",
    device: Literal["cpu", "cuda"] = "cpu",
    checkpointing: bool = False,
) -> Step:
    """The step of `method` at `batch` examples of `length` tokens (images: of their own size), on the meta device.

    Raises `ModelError` for a rank above a layer, an unknown target, or a model that can't be stepped without weights.
    """

    def at(depth: int | None) -> Step:
        return _simulate(_shallow(config, depth), task, head, method, batch, length, dtype, device, checkpointing)

    depth = getattr(config, "num_hidden_layers", None)
    if not isinstance(depth, int) or depth < DEEP or method.layers is not None:
        return at(None)
    two, three = at(2), at(3)
    a_layer = Counter(three.shapes) - Counter(two.shapes)
    if not a_layer and two.shapes:
        return at(None)  # the adapted layers are not spread over the depth: nothing to extrapolate by
    line = {f.name: getattr(two, f.name) for f in fields(Step)}
    for name in line.keys() - {"shapes", "coverage"}:
        line[name] += (depth - 2) * (getattr(three, name) - line[name])
    return Step(**{**line, "shapes": (*two.shapes, *list(a_layer.elements()) * (depth - 2))})


def _shallow(config: Any, depth: int | None) -> Any:
    config = copy.deepcopy(config)
    if depth is not None:
        config.num_hidden_layers = depth
        if isinstance(getattr(config, "layer_types", None), list):
            config.layer_types = config.layer_types[:depth]
    return config


def _simulate(
    config: Any,
    task: type[Task],
    head: Head,
    method: MethodSpec,
    batch: int,
    length: int,
    dtype: Dtype,
    device: str,
    checkpointing: bool,
) -> Step:
    schedule = {"peft_options": {"total_step": 1000}} if method.name == "peft:adalora" else {}  # it changes no size
    base = _meta(config, head, _DTYPES[dtype])
    inputs = task.sample_inputs(base, head, batch, length)
    model = attach_method(base, method, seed=0, **schedule)
    attached = attachment(model)
    facts = count_parameters(model)
    if checkpointing:
        network: Any = model
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    try:
        live, kept, forward_peak = _step(model, inputs, device)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        try:  # BLOOM and others read a mask of two dimensions only, and make one where they are given none
            live, kept, forward_peak = _step(model, {k: v for k, v in inputs.items() if k != "attention_mask"}, device)
        except (RuntimeError, NotImplementedError, ValueError):
            reason = str(error).strip().splitlines()[0][:160]
            raise ModelError(f"{type(config).__name__}: a step can't be forecast without weights ({reason})") from None
    batch_bytes = sum(t.numel() * t.element_size() for t in inputs.values())
    trained = [p for p in model.parameters() if p.requires_grad]
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return Step(
        parameters=facts.parameters,
        trainable=facts.trainable,
        adapter=facts.adapter,
        head=facts.head,
        weights=sum(t.numel() * t.element_size() for t in tensors.values()),
        gradients=sum(p.numel() * p.element_size() for p in trained),
        kept=kept,
        forward_peak=batch_bytes + forward_peak,
        peak=batch_bytes + live.peak,
        shapes=tuple((t.out_features, t.in_features) for t in attached.targets),
        coverage=facts.coverage,
    )


def _step(model: Any, inputs: Mapping[str, Tensor], device: str) -> tuple[LiveMemory, int, int]:
    """Forward and backward: what was counted, and the bytes kept in between and at the peak of the forward."""
    model.zero_grad()
    live = LiveMemory()
    with fused_kernels(dropout_is_fused=device == "cuda"), live:
        loss = model(**inputs).loss
        kept, forward_peak = live.now, live.peak
        loss.backward()
    return live, kept, forward_peak


def _meta(config: Any, head: Head, dtype: torch.dtype) -> nn.Module:
    for key, value in head.config().items():
        setattr(config, key, value)
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0
    config.use_cache = False  # of keys and values, which no training step keeps
    try:
        with torch.device("meta"):
            model: nn.Module = head.model_class.from_config(config, dtype=dtype)
    except ValueError as error:
        raise ModelError(
            f"{type(config).__name__} can't be made {head.description}: {str(error).splitlines()[0]}"
        ) from None
    prepare(model, head)
    return model


def equivalent_method(method: MethodSpec) -> MethodSpec:
    """The simplest method whose step is the same: starts, rates, scales and chains change no size, and which columns
    are taken neither."""
    row = get_method(method.name)
    name = {"AB": "lora", "columns": "paca", "A": "cla-rows"}.get(row.trained, method.name)
    if row.trained == "B":
        name = "asym" if row.where == "random" else "cla"
    return MethodSpec(name=name, rank=method.rank, targets=method.targets, layers=method.layers)
