"""dW: what a method has added to each layer, all links and the scale included."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunewise.errors import SpecError
from tunewise.methods.attachment import adapted_layer, attachment
from tunewise.models.layers import Target, linear_layers


def delta(model: nn.Module, base: nn.Module | None = None) -> dict[str, Tensor]:
    """dW of every adapted layer, alpha / rank and all links included.

    Args:
        model: a model that `tunewise.attach` or `tunewise.load` returned.
        base: the model before training; needed for `fft`, which keeps no copy of the base weights.

    Returns:
        {layer name: fp32 tensor (out, in)}; empty for `head`.

    Raises:
        SpecError: the model carries no method, or `fft` without `base`.

    Example:
        >>> import torch, tunewise
        >>> model = tunewise.attach(torch.nn.Sequential(torch.nn.Linear(8, 4)), "cla", rank=2, targets=["0"])
        >>> {name: tuple(dense.shape) for name, dense in tunewise.delta(model).items()}
        {'0': (4, 8)}
    """
    done = attachment(model)
    if done.method.trained == "head":
        return {}
    if done.method.trained == "all":
        if base is None:
            raise SpecError("full fine-tuning keeps no copy of the base weights; call delta(model, base=...)")
        before = {name: _out_in(module) for name, module in linear_layers(base).items()}
        after = {name: _out_in(module) for name, module in linear_layers(model).items()}
        return {name: (after[name] - before[name]).float() for name in after}
    return {target.name: layer_delta(model, target) for target in done.targets}


def layer_delta(model: nn.Module, target: Target) -> Tensor:
    """dW of one adapted layer, fp32 (out, in), alpha / rank and all links included; not for `fft` and `head`."""
    done = attachment(model)
    if done.method.passed_through:
        return _merged_difference(model, target)
    layer = adapted_layer(model, target)
    dense = layer.get_delta_weight(done.adapter_name).detach().float()
    return dense.T if layer.fan_in_fan_out else dense


def _merged_difference(model: nn.Module, target: Target) -> Tensor:
    """dW of a method that may not be additive (DoRA): a copy of the layer, merged, minus the layer."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    layer: Any = copy.deepcopy(base.get_submodule(target.name))
    weight = layer.get_base_layer().weight
    if type(weight) is not nn.Parameter:
        raise SpecError("PEFT quantizes what it merges again, so dW can't be read; load the adapter onto a plain base")
    layer = layer.to(torch.promote_types(weight.dtype, torch.float32))
    before = _out_in(layer.get_base_layer()).clone()
    layer.merge()
    return _out_in(layer.get_base_layer()).float() - before.float()


def _out_in(module: nn.Module) -> Tensor:
    weight: Any = module.weight
    return (weight.T if isinstance(module, Conv1D) else weight).detach()
