"""Weights in 4 or 8 bits by bitsandbytes, and GGUF files, which are dequantized."""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GgufConfig

from tunewise.errors import ModelError, first_line
from tunewise.locate import cache_folder, digest
from tunewise.spec import ModelSpec

Quantization = Literal["nf4", "fp4", "int8"]

_INSTALL = 'pip install "tunewise[llm]"'


def unquantized_modules(head: Sequence[str]) -> list[str]:
    """Names of linear layers that stay as they are: those of a task head, and the output layer over the vocabulary."""
    return [*head, "lm_head"]


def quantization_options(spec: ModelSpec, head: Sequence[str], dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is given to quantize the frozen weights of `spec`, all but the modules of the head.

    Computation is in `dtype`; nf4 and fp4 quantize their scales too (double quantization). Raises `ModelError` where
    bitsandbytes is not installed."""
    if spec.quantization == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"quantization {spec.quantization} needs bitsandbytes: {_INSTALL}")
    if spec.quantization == "int8":
        options: dict[str, Any] = {"load_in_8bit": True}
    else:
        options = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": spec.quantization,
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": dtype,
        }
    return {"quantization_config": BitsAndBytesConfig(llm_int8_skip_modules=unquantized_modules(head), **options)}


def keep_weights_packed_once(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for the AVX512-BF16 instructions of a CPU: it does so in the first
    forward in eval mode, never undoes it, and the gradients of all later training steps are wrong."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def is_quantized(module: nn.Module) -> bool:
    """Whether the weight of a linear layer is stored in fewer bits than it is used in."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and not weight.is_floating_point()


def count_weights(parameter: Tensor) -> int:
    """Number of weights of a parameter; of a packed one more than it has elements."""
    packed_from = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed_from is None else math.prod(packed_from.shape)


@torch.no_grad()
def dequantize_layers(model: nn.Module) -> nn.Module:
    """Replace every quantized linear layer of a model without adapters by a plain one with the weights it computes
    with. Returns the model."""
    for name, module in list(model.named_modules()):
        weight = getattr(module, "weight", None)
        if not isinstance(module, nn.Linear) or type(weight) in (nn.Parameter, Tensor):
            continue
        plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(dequantize_module_weight(module).detach().clone(), requires_grad=False)
        plain.bias = module.bias
        model.set_submodule(name, plain.train(module.training))
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    return model


def to_fp32(model: nn.Module) -> nn.Module:
    """Dequantize a model without adapters and widen its 16-bit weights: the same network, computed in fp32. Returns the
    model."""
    dequantize_layers(model)
    return model.float() if any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters()) else model


def is_fp32(model: nn.Module) -> bool:
    """Whether all weights are plain and of 32 bits or more."""
    plain = (nn.Parameter, Tensor)
    return all(type(p) in plain and p.dtype in (torch.float32, torch.float64) for p in model.parameters())


def dequantize_gguf(file: Path) -> Path:
    """The model of a GGUF file as an ordinary folder in bf16, written once into the cache, named by the file's digest.
    Raises `ModelError`."""
    folder = cache_folder() / "gguf" / digest([file])[:16]
    if folder.is_dir():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{file.name}: GGUF files need the package gguf: {_INSTALL}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=folder.parent) as scratch:
        content = Path(scratch) / "content"
        content.mkdir()
        try:
            model = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True, gguf_file=file.name),
            )
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise ModelError(f"{file.name} can't be read as a GGUF model ({first_line(error)})") from None
        model.save_pretrained(content)
        tokenizer.save_pretrained(content)
        try:
            content.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same bytes
                raise
    return folder
