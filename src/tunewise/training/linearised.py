r"""Fine-tuning in the NTK regime: the network replaced by its linearisation at the pretrained weights.

    f_lin(x; W0 + dW, h) = f(x; W0, h0) + Df(x; W0, h0)[dW, h - h0]

as in arXiv 2402.11867 (Section 2): linear in the effective weights W0 + dW and in the task head h, while dW = s B A
stays a product. So the loss is convex in (dW, h), but not in (B, A). Df is a Jacobian-vector product in forward mode.
Dropout is off, since f must be one function.

`linearise` replaces the forward of a model with a method; it trains, scores, saves and resumes like any other. The
saved adapter is the plain LoRA adapter of dW: other readers compute the *network* at W0 + dW, not f_lin. So
`verify_linearised` compares f_lin with f_lin for dW and head as stock PEFT loads them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.pytorch_utils import Conv1D

from tunewise.errors import SpecError, StoreError
from tunewise.methods.adapters.base import adapters_of
from tunewise.methods.attachment import Attachment, attachment
from tunewise.methods.files import CHANGED
from tunewise.methods.loading import load
from tunewise.methods.verify import TOLERANCE
from tunewise.store.records import Check

Change = Mapping[str, Tensor]
"""Name of a parameter of the base model -> what is added to it, in the orientation of the layer."""


def linear_parts(
    network: nn.Module, change: Change, inputs: Mapping[str, Tensor], held: Change | None = None
) -> tuple[Tensor, Tensor]:
    """f(inputs) and Df(inputs)[change], both (examples, outputs), differentiable in `change`; the network must be in
    eval mode. `held` is added to other parameters first."""
    own = dict(network.named_parameters())
    at = {name: own[name].detach() for name in change}
    if not change:
        logits = moved_outputs(network, held or {}, inputs)
        return logits, torch.zeros_like(logits)
    elsewhere = {name: own[name].detach() + value.to(own[name].dtype) for name, value in (held or {}).items()}

    def outputs(weights: dict[str, Tensor]) -> Tensor:
        return functional_call(network, {**elsewhere, **weights}, args=(), kwargs=dict(inputs)).logits

    directions = {name: value.to(at[name].dtype) for name, value in change.items()}
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no forward mode
        value, derivative, *_ = jvp(outputs, (at,), (directions,))
    return value, derivative


def moved_outputs(network: nn.Module, change: Change, inputs: Mapping[str, Tensor]) -> Tensor:
    """f(inputs) of the network itself with `change` added to its weights, (examples, outputs)."""
    own = dict(network.named_parameters())
    weights = {name: own[name].detach() + value.to(own[name].dtype) for name, value in change.items()}
    with sdpa_kernel(SDPBackend.MATH):
        logits: Tensor = functional_call(network, weights, args=(), kwargs=dict(inputs)).logits
    return logits


def frozen_copy(base: nn.Module, *, own_values: bool) -> nn.Module:
    """A frozen copy of `base` in eval mode that stays at W0. It shares the values, or with `own_values` copies them,
    which is needed where `base` itself is trained."""
    memo: dict[int, object] = {}
    for parameter in base.parameters():
        values = parameter.data.clone() if own_values else parameter.data
        memo[id(parameter)] = nn.Parameter(values, requires_grad=False)
    return copy.deepcopy(base, memo).eval()


def linearise(model: nn.Module, frozen: nn.Module) -> None:
    """From now on `model(**inputs)` returns the logits of f_lin (and with `labels` its loss), where `frozen` holds W0.
    Raises `SpecError` for a method of PEFT's own (`peft:NAME`), or with columns that are folded into W0."""
    done = attachment(model)
    check_can_be_linearised(done)
    if model.__dict__.get("linearised"):
        raise SpecError("this model is linearised already")
    plain = model.forward
    holder = [frozen]  # in a list, so that it is not a submodule: not among the parameters, not in the state

    @wraps(plain)
    def forward(*args: Any, labels: Tensor | None = None, **inputs: Any) -> SequenceClassifierOutput:
        if args:
            raise SpecError("a linearised model takes its inputs by name: model(**batch)")
        inputs.pop("num_items_in_batch", None)
        network = holder[0].to(next(iter(inputs.values())).device)
        value, derivative = linear_parts(network, live_change(model, network), inputs)
        logits = value + derivative
        return SequenceClassifierOutput(loss=None if labels is None else _loss(logits, labels), logits=logits)

    model.forward = forward
    model.__dict__["linearised"] = True


def check_can_be_linearised(done: Attachment) -> None:
    """Raises `SpecError` for a method with a dW that is not formed here."""
    if done.method.passed_through:
        raise SpecError(
            f"method {done.method.name!r} can't be trained linearised: its update is PEFT's own; use a method of "
            "tunewise, such as lora"
        )
    if done.method.selects_columns and done.fold != "never":
        raise SpecError("columns that are folded into W0 can't be linearised; attach with fold='never'")


def live_change(model: nn.Module, frozen: nn.Module) -> dict[str, Tensor]:
    """dW of every adapted layer and the change of the head, by the parameter names of `frozen`, differentiable in what
    is trained. For `fft` and `head` the change of every trained parameter."""
    done = attachment(model)
    start = dict(frozen.named_parameters())
    if not done.method.adapts:
        return {name: p - start[name] for name, p in model.named_parameters() if p.requires_grad}
    assert isinstance(model, PeftModel)
    base = model.get_base_model()
    change: dict[str, Tensor] = {}
    for target in done.targets:
        layer: Any = base.get_submodule(target.name)
        ours = adapters_of(layer).get(done.adapter_name)
        dense = ours.live_delta() if ours is not None else _of_plain(layer, done.adapter_name)
        plain = frozen.get_submodule(target.name)
        change[f"{target.name}.weight"] = dense.T if isinstance(plain, Conv1D) else dense
    return {**change, **head_change(model, frozen, done.adapter_name)}


def _of_plain(layer: Any, name: str) -> Tensor:
    """s B A of a stock LoRA layer, (n, m)."""
    product: Tensor = layer.lora_B[name].weight @ layer.lora_A[name].weight
    return product * layer.scaling[name]


def head_change(model: Any, frozen: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """h - h0 of the modules that PEFT keeps a trained copy of, by the parameter names of `frozen`."""
    start = dict(frozen.named_parameters())
    middle = f".modules_to_save.{adapter_name}."
    change = {}
    for name, parameter in model.get_base_model().named_parameters():
        if middle in name:
            plain = name.replace(middle, ".")
            change[plain] = parameter - start[plain]
    return change


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy for classes, squared error for numbers."""
    if labels.is_floating_point():
        return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
    return F.cross_entropy(logits, labels)


@torch.no_grad()
def verify_linearised(model: nn.Module, path: Path, base: nn.Module, batch: Mapping[str, Tensor]) -> Check:
    """f_lin in memory against f_lin with dW and head as stock PEFT loads them from `path` onto a fresh `base`. Raises
    `StoreError` where the largest difference of logits is above 1e-4 of the largest logit (or of 1)."""
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
    frozen = frozen_copy(base, own_values=True).to(device)
    change, loader = _stored_change(model, path, base, frozen)
    value, derivative = linear_parts(frozen, {name: t.to(device) for name, t in change.items()}, inputs)
    expected: Tensor = model(**inputs).logits
    difference = float((value + derivative - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise StoreError(
            f"{path}: loaded again its linearised form gives other logits (by {difference:.2g}); the folder is not to "
            "be used"
        )
    return Check(max_logit_difference=difference, examples=len(value), loader=f"{loader}, linearised")


def _stored_change(model: nn.Module, path: Path, base: nn.Module, frozen: nn.Module) -> tuple[dict[str, Tensor], str]:
    start = dict(frozen.named_parameters())
    if not attachment(model).method.adapts:
        again = load(base, path)
        return {
            n: p - start[n] for n, p in again.named_parameters() if not torch.equal(p, start[n])
        }, f"tunewise.load ({CHANGED})"
    again = PeftModel.from_pretrained(base, str(path))
    change = head_change(again, frozen)
    for name, module in again.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and "default" in module.lora_A:
            layer: Any = module
            change[f"{name}.weight"] = layer.get_delta_weight("default")
    return change, "peft.PeftModel.from_pretrained"
