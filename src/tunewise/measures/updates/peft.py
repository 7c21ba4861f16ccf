"""The updates by a folder of the PEFT library, of any method, with PEFT's own loading and merging.

The adapter is loaded onto a skeleton: a copy of the module tree whose parameters are views of the base model's, so
that nothing is copied and the base model's own tree, flags and values stay as they are.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.adalora import SVDLinear
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType
from peft.utils.constants import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from torch import Tensor, nn

from tunewise.errors import MeasureError, StoreError
from tunewise.measures.updates.layer import LayerUpdate, Updates, weight_of
from tunewise.measures.updates.refusal import last_line, refusal
from tunewise.methods.files import CONFIG, read_tensors
from tunewise.models.layers import linear_layers
from tunewise.models.quantization import dequantize_layers

_STARTS_THAT_KEEP_W0 = (True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights`; the others may change the base weight when the adapter is attached."""
_ADAPTER = "default"


def updates_by_peft(folder: Path, base: nn.Module) -> Updates:
    """Raises `StoreError` for a folder that is damaged, does not fit, or is of a method that changes no weights."""
    config = _config(folder)
    family = str(config.peft_type.value).lower()
    if family == "lora" and getattr(config, "use_dora", False):
        family = "dora"
    keeps = getattr(config, "init_lora_weights", True) in _STARTS_THAT_KEEP_W0
    skeleton = _skeleton(base, own_values=not keeps)
    if family != "lora":  # PEFT would quantize what it merges again
        dequantize_layers(skeleton)
    model = _load(folder, config, skeleton)
    inner = model.get_base_model()
    linears = linear_layers(base)
    found: list[LayerUpdate] = []
    left_out: list[str] = []
    for name, layer in inner.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        if name not in linears:
            if not any(name.startswith(f"{known}.") for known in linears):
                left_out.append(name)
            continue
        found.append(_update(name, layer, linears[name], keeps))
    if not found:
        raise StoreError(f"{folder} ({family}) changes no linear layer's weight, so there is no dW")
    return Updates(found, family, left_out)


def _config(folder: Path) -> Any:
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{folder / CONFIG} can't be read: {last_line(error)}") from None
    if config.is_prompt_learning or config.peft_type in (PeftType.ADAPTION_PROMPT, PeftType.XLORA, PeftType.POLY):
        raise StoreError(
            f"{folder} is of method {content.get('peft_type')}, which changes no weights, so there is no dW"
        )
    # The task head is left out, and the given model may have another one or none.
    config.modules_to_save = None
    config.task_type = None
    config.inference_mode = True
    return config


def _load(folder: Path, config: Any, skeleton: nn.Module) -> PeftModel:
    file = folder / SAFETENSORS_WEIGHTS_NAME
    if not file.exists():
        pickled = (folder / WEIGHTS_NAME).exists()
        hint = f"; {WEIGHTS_NAME} is a pickle and is not read (load and save it with PEFT)" if pickled else ""
        raise StoreError(f"{folder} holds no {SAFETENSORS_WEIGHTS_NAME}{hint}")
    weights = read_tensors(file)
    with refusal(StoreError, f"{folder} does not fit this model"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = get_peft_model(skeleton, config, adapter_name=_ADAPTER)
        prefix = str(getattr(model.base_model, "prefix", "lora_"))
        expected = get_peft_model_state_dict(model, adapter_name=_ADAPTER, save_embedding_layers=False)
        own = {key: tensor for key, tensor in weights.items() if prefix in key or key in expected}  # not the head's
        set_peft_model_state_dict(model, own, adapter_name=_ADAPTER)
    for key in sorted(own.keys() ^ expected.keys()):
        where = "not in the model" if key in own else "missing in the folder"
        raise StoreError(f"{folder} does not fit this model: tensor {key} is {where}")
    for key, tensor in own.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise StoreError(f"{folder}: {key} holds NaN or infinity; it comes from a diverged run")
    return model.eval()


def _skeleton(base: nn.Module, own_values: bool) -> nn.Module:
    """A new module tree over the same values, or with `own_values` over copies of them."""
    memo: dict[int, object] = {}
    for parameter in base.parameters():
        if type(parameter) is nn.Parameter:
            values = parameter.data.clone() if own_values else parameter.data
            memo[id(parameter)] = nn.Parameter(values, requires_grad=False)
        else:  # quantized: kept as it is
            memo[id(parameter)] = parameter
    for buffer in base.buffers():
        memo[id(buffer)] = buffer
    return copy.deepcopy(base, memo)


def _update(name: str, layer: Any, base: nn.Module, keeps: bool) -> LayerUpdate:
    moved = not keeps and not torch.equal(weight_of(layer.get_base_layer()), weight_of(base))
    if isinstance(layer, SVDLinear) and not moved:  # AdaLoRA: P Lambda Q, divided by the number of ranks kept
        scale = layer.scaling[_ADAPTER] / (float(layer.ranknum[_ADAPTER]) + 1e-5)
        right = layer.lora_A[_ADAPTER].double() * layer.lora_E[_ADAPTER].double()
        return LayerUpdate.of_factors(name, base, layer.lora_B[_ADAPTER].double() * scale, right)
    plain = isinstance(layer, LoraLayer) and _ADAPTER in layer.lora_A and _ADAPTER not in layer.lora_variant
    if plain and not moved:
        left = layer.lora_B[_ADAPTER].weight.double() * layer.scaling[_ADAPTER]
        return LayerUpdate.of_factors(name, base, left, layer.lora_A[_ADAPTER].weight)
    return LayerUpdate.of_dense(name, base, _by_merging(name, layer, base))


def _by_merging(name: str, layer: Any, base: nn.Module) -> Callable[[], Tensor]:
    """PEFT's merge of a copy of the layer, in fp64, minus the pretrained weight; `MeasureError` where it fails."""

    def make() -> Tensor:
        twin = copy.deepcopy(layer)
        if type(twin.get_base_layer().weight) is nn.Parameter:
            twin = twin.double()
        with refusal(MeasureError, f"layer {name}: PEFT can't merge {type(layer).__name__}"), torch.no_grad():
            twin.merge()
        return weight_of(twin.get_base_layer()).double() - weight_of(base).double()

    return make
