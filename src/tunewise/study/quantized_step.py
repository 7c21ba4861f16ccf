"""Linear layers in 4 and 8 bits by their sizes alone, as bitsandbytes steps them: for a model on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizers_utils import should_convert_module

from tunewise.models.head import head_modules
from tunewise.models.quantization import Quantization, unquantized_modules

_SCALES = 1 / 64 + 4 / (64 * 256)
"""Bytes a 4-bit weight: an 8-bit scale for 64 weights, and an fp32 scale for 256 of those (double quantization)."""


class QuantizedLinear(nn.Linear):
    """A layer whose weight is dequantized whenever it is used."""

    def __init__(self, inputs: int, outputs: int, bias: bool, dtype: torch.dtype, quantization: Quantization) -> None:
        super().__init__(inputs, outputs, bias, device="meta", dtype=dtype)
        self.requires_grad_(False)
        self.weight = nn.Parameter(torch.empty_like(self.weight, dtype=torch.uint8), requires_grad=False)
        self.compute_dtype, self.quantization = dtype, quantization

    @property
    def stored_bytes(self) -> float:
        """Bytes of the weight with its scales."""
        if self.quantization == "int8":
            return self.weight.numel() + 4 * self.out_features
        return self.weight.numel() * (0.5 + _SCALES)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = _Dequantized.apply(x, self)
        return output


class _Dequantized(torch.autograd.Function):
    """The product with a dequantized copy of the weight, which is made again in the backward pass. In 8 bits the input
    is kept too (`MatMul8bitFp` of bitsandbytes)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        if layer.quantization == "int8":
            ctx.save_for_backward(x)
        return F.linear(x, torch.empty_like(layer.weight, dtype=layer.compute_dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ torch.empty_like(ctx.layer.weight, dtype=ctx.layer.compute_dtype), None


def quantize(model: nn.Module, dtype: torch.dtype, quantization: Quantization) -> None:
    """Replace the layers that loading would quantize."""
    kept = unquantized_modules(head_modules(model))
    for name, module in list(model.named_modules()):
        if (type(module) is not nn.Linear and not isinstance(module, Conv1D)) or not should_convert_module(name, kept):
            continue
        outputs, inputs = module.weight.shape if isinstance(module, nn.Linear) else reversed(module.weight.shape)
        model.set_submodule(name, QuantizedLinear(inputs, outputs, module.bias is not None, dtype, quantization))


def stored_bytes(model: nn.Module) -> float:
    """Bytes of all weights and buffers, shared ones once."""
    packed = {id(m.weight): m.stored_bytes for m in model.modules() if isinstance(m, QuantizedLinear)}
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return sum(packed.get(key, t.numel() * t.element_size()) for key, t in tensors.items())
