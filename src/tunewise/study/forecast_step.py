"""One training step of a method, forecast from the model's configuration: what is trained, and the bytes it takes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from tunewise.catalog import get_method
from tunewise.errors import ModelError
from tunewise.methods.attachment import attachment
from tunewise.models.head import Head, head_modules, keep_in_fp32, prepare
from tunewise.spec import MethodSpec
from tunewise.store.records import Coverage
from tunewise.study.live_memory import LiveMemory, fused_kernels
from tunewise.study.quantized_step import quantize, stored_bytes
from tunewise.tasks.contract import Task
from tunewise.training.build import attach_method, count_parameters
from tunewise.training.optimizers import OptimizerName

Dtype = Literal["float32", "bfloat16", "float16"]

_MOMENTS = 2
"""Of AdamW, of each trained number."""
_LEAST_IN_8_BITS = 4096
"""Numbers of a tensor from which on the moments of bitsandbytes are in 8 bits, with an fp32 scale for 256 of them."""
_UPDATE_COPIES = 5.5
"""fp32 copies of the largest tensor that bitsandbytes makes on a CPU when it updates in 8 bits; measured."""

DEEP = 5
"""From this many layers on, two shallow models are stepped and extrapolated."""


class StepSettings(TypedDict, total=False):
    """Batches of `batch` examples of `length` tokens (images: of their own size), and how they are computed."""

    batch: int
    length: int
    dtype: Dtype
    quantization: Literal["none", "nf4", "fp4", "int8"]
    device: Literal["cpu", "cuda"]
    checkpointing: bool
    accumulation: bool
    optimizer: OptimizerName


@dataclass(frozen=True)
class StepSetup:
    """What is stepped, and how. `config` is a transformers configuration."""

    config: object
    task: type[Task]
    head: Head
    batch: int = 16
    length: int = 128
    dtype: Dtype = "float32"
    quantization: Literal["none", "nf4", "fp4", "int8"] = "none"
    device: Literal["cpu", "cuda"] = "cpu"
    checkpointing: bool = False
    accumulation: bool = False
    """Whether gradients of batches before it are there when a batch is computed."""
    optimizer: OptimizerName = "adamw"


@dataclass(frozen=True)
class Step:
    """Counts and bytes. All are linear in the number of layers, but `peak`, the largest of several that are."""

    parameters: float
    trainable: float
    adapter: float
    head: float
    weights: float
    gradients: float
    optimizer: float
    kept: float
    """Live between forward and backward: what autograd keeps, and the output."""
    forward_peak: float
    """With the batch itself, as `peak`."""
    peak: float
    update: float
    """When the optimizer changes the weights: gradients and what the update computes with."""
    shapes: tuple[tuple[int, int], ...]
    """(outputs n, inputs m) of every adapted layer."""
    coverage: Coverage | None
    """Of the layers that were simulated; the shares are those of the whole model."""

    @property
    def working(self) -> float:
        """Bytes above weights and optimizer state, at the worst moment of a step."""
        return max(self.peak, self.forward_peak, self.update)


def forecast_step(setup: StepSetup, method: MethodSpec) -> Step:
    """The step of `method`, on the meta device.

    Raises `ModelError` for a rank above a layer, an unknown target, or a model that can't be stepped without weights.
    """

    def at(depth: int | None) -> Step:
        return _simulate(replace(setup, config=_shallow(setup.config, depth)), method)

    depth = getattr(setup.config, "num_hidden_layers", None)
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


def _shallow(config: object, depth: int | None) -> object:
    config = copy.deepcopy(config)
    types = getattr(config, "layer_types", None)
    changes = {"num_hidden_layers": depth, "layer_types": types[:depth] if isinstance(types, list) else None}
    for key, value in changes.items() if depth is not None else ():
        if value is not None:
            setattr(config, key, value)
    return config


def _simulate(setup: StepSetup, method: MethodSpec) -> Step:
    schedule = {"peft_options": {"total_step": 1000}} if method.name == "peft:adalora" else {}  # it changes no size
    base = _meta(setup)
    inputs = setup.task.sample_inputs(base, setup.head, setup.batch, setup.length)
    model = attach_method(base, method, seed=0, **schedule)
    attached = attachment(model)
    facts = count_parameters(model)
    if setup.checkpointing:
        network: Any = model
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    try:
        live, kept, forward_peak = _step(model, inputs, setup)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        try:  # BLOOM and others read a mask of two dimensions only, and make one where they are given none
            unmasked = {key: value for key, value in inputs.items() if key != "attention_mask"}
            live, kept, forward_peak = _step(model, unmasked, setup)
        except (RuntimeError, NotImplementedError, ValueError):
            reason = str(error).strip().splitlines()[0][:160]
            raise ModelError(
                f"{type(setup.config).__name__}: a step can't be forecast without weights ({reason})"
            ) from None
    batch_bytes = sum(t.numel() * t.element_size() for t in inputs.values())
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    before = batch_bytes + (gradients if setup.accumulation else 0)
    return Step(
        parameters=facts.parameters,
        trainable=facts.trainable,
        adapter=facts.adapter,
        head=facts.head,
        weights=stored_bytes(model),
        gradients=gradients,
        optimizer=sum(_optimizer_bytes(p, setup.optimizer) for p in trained),
        kept=kept,
        forward_peak=before + forward_peak,
        peak=before + live.peak,
        update=gradients + _update_bytes(trained, setup),
        shapes=tuple((t.out_features, t.in_features) for t in attached.targets),
        coverage=facts.coverage,
    )


def _update_bytes(trained: Sequence[Tensor], setup: StepSetup) -> float:
    """Temporaries of an update: none where the optimizer is fused."""
    if setup.optimizer == "adamw" or setup.device == "cuda":
        return 0.0
    return _UPDATE_COPIES * 4 * max((p.numel() for p in trained), default=0)


def _optimizer_bytes(parameter: Tensor, optimizer: OptimizerName) -> float:
    if optimizer == "adamw":
        return _MOMENTS * parameter.numel() * parameter.element_size()
    return _MOMENTS * parameter.numel() * (4.0 if parameter.numel() < _LEAST_IN_8_BITS else 1 + 4 / 256)


def _step(model: nn.Module, inputs: Mapping[str, Tensor], setup: StepSetup) -> tuple[LiveMemory, int, int]:
    """Forward and backward: what was counted, and the bytes kept in between and at the peak of the forward."""
    model.zero_grad()
    live = LiveMemory()
    with fused_kernels(dropout_is_fused=setup.device == "cuda"):
        if setup.accumulation:
            model(**inputs).loss.backward()
        with live:
            loss = model(**inputs).loss
            kept, forward_peak = live.now, live.peak
            loss.backward()
    return live, kept, forward_peak


def _meta(setup: StepSetup) -> nn.Module:
    """The base model as it is loaded."""
    config, head, dtype = setup.config, setup.head, getattr(torch, setup.dtype)
    padding = getattr(config, "pad_token_id", None) or 0
    # No cache of keys and values, which no training step keeps.
    for key, value in {**head.config(), "pad_token_id": padding, "use_cache": False}.items():
        setattr(config, key, value)
    try:
        with torch.device("meta"):
            model: nn.Module = head.model_class.from_config(config, dtype=dtype)
    except ValueError as error:
        raise ModelError(
            f"{type(config).__name__} can't be made {head.description}: {str(error).splitlines()[0]}"
        ) from None
    if setup.quantization != "none":
        quantize(model, dtype, setup.quantization)
    keep_in_fp32(model, head_modules(model))
    prepare(model, head)
    return model


def equivalent_method(method: MethodSpec) -> MethodSpec:
    """The simplest method whose step is the same: starts, rates, scales and chains change no size, and which columns
    are taken neither."""
    row = get_method(method.name)
    name = {"AB": "lora", "columns": "paca", "A": "cla-rows"}.get(row.trained, method.name)
    if row.trained == "B":
        name = "asym" if row.where == "random" else "cla"
    return MethodSpec(name=name, **method.model_dump(include={"rank", "targets", "layers"}))
