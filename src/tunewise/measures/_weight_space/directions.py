"""Random directions in weight space, filter-normalised (1712.09913, section 4): for each output row of each weight a
Gaussian vector as long as that row, d_ij <- d_ij / ||d_ij|| ||w_ij||. So a plot does not depend on how the weights
are scaled from layer to layer, and 1 means the same for every method.

Directions are for the weights of linear and convolutional layers. Parameters of one dimension (biases, norms) are not
moved, as in the paper, and neither are embeddings, which are no filters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunewise.errors import MeasureError
from tunewise.methods.draws import stream

Direction = dict[str, Tensor]
"""By parameter's name: fp32 or wider, the parameter's shape, on its device."""


@dataclass(frozen=True)
class Weight:
    """A weight that directions move. `output_dim`: the dimension that counts output rows."""

    parameter: nn.Parameter
    output_dim: int

    def rows(self, tensor: Tensor) -> Tensor:
        """A tensor of the weight's shape as (outputs, everything else), a view where it can be one."""
        return tensor.transpose(0, self.output_dim).flatten(1)

    def row_norms(self, tensor: Tensor) -> Tensor:
        """Length of each output row, in a shape that broadcasts over the tensor."""
        others = [dim for dim in range(tensor.ndim) if dim != self.output_dim]
        return torch.linalg.vector_norm(tensor, dim=others, keepdim=True)


def weights_of(model: nn.Module) -> dict[str, Weight]:
    """Weights of linear and convolutional layers, without tied ones. Raises `MeasureError` for a quantized base."""
    names = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found: dict[str, Weight] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            weight = module.weight
            if type(weight) is not nn.Parameter or not weight.is_floating_point():
                raise MeasureError(f"layer {name} holds no plain floating-point weight, so it can't be moved")
            if names[id(weight)] == 1:
                found[f"{name}.weight".removeprefix(".")] = Weight(weight, 1 if isinstance(module, Conv1D) else 0)
    if not found:
        raise MeasureError("the model has no linear or convolutional layer, so there is no weight to move")
    return found


@torch.no_grad()
def random_direction(weights: Mapping[str, Weight], seed: int, number: int) -> Direction:
    """The `number`-th filter-normalised Gaussian direction; methods on one base model share the Gaussian."""
    return {
        name: _normalised(
            weight, torch.randn(weight.parameter.shape, generator=stream(seed, "landscape", number, name))
        )
        for name, weight in weights.items()
    }


def _normalised(weight: Weight, gaussian: Tensor) -> Tensor:
    """The Gaussian with each row as long as the weight's; fp32, fp64 for fp64 weights."""
    wide = torch.promote_types(weight.parameter.dtype, torch.float32)
    value, gaussian = weight.parameter.detach().to(wide), gaussian.to(weight.parameter.device, wide)
    return gaussian * (weight.row_norms(value) / weight.row_norms(gaussian))
