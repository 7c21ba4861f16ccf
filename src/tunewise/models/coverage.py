"""How much of a model's blocks an adapter is on, and which weights it leaves out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from tunewise.models.layers import IN_BLOCK, Target, linear_layers, shape_of


@dataclass(frozen=True)
class Coverage:
    """Weights of the repeated blocks: matrices, without biases, norms and embeddings."""

    share: float
    """Of these weights, the part in adapted rows; 0 to 1."""
    left_out: dict[str, float]
    """Shares of the others, largest first, by their names within a block: `{"mlp.experts.down_proj": 0.28}`."""

    def describe(self, most: int = 3) -> str:
        """In words: `13 % of the block weights are adapted; not mlp.experts.gate_up_proj (58 %), ...`."""
        others = [f"{name} ({share:.1%})" for name, share in list(self.left_out.items())[:most]]
        more = ", ..." if len(self.left_out) > most else ""
        rest = f"; not {', '.join(others)}{more}" if others else ""
        return f"{self.share:.1%} of the block weights are adapted{rest}"


def measure_coverage(model: nn.Module, targets: Sequence[Target]) -> Coverage:
    """The share of the block weights of `model` that `targets` name. `model` may carry adapters already."""
    weights = {name: math.prod(shape_of(layer)) for name, layer in linear_layers(model).items()}
    inside = tuple(f"{name}." for name in weights)
    for name, module in model.named_modules():
        if name.startswith(inside) or name in weights or isinstance(module, nn.Embedding | BaseTunerLayer):
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1 and not key.endswith("bias"):
                weights[f"{name}.{key}".removesuffix(".weight")] = parameter.numel()
    weights = {name: count for name, count in weights.items() if IN_BLOCK.search(name)}
    adapted = {target.name: target.rows * target.in_features for target in targets}
    total = sum(weights.values()) or 1
    left: Counter[str] = Counter()
    for name, count in weights.items():
        left[IN_BLOCK.split(name, maxsplit=1)[1]] += count - adapted.get(name, 0)
    left_out = {name: count / total for name, count in left.most_common() if count}
    return Coverage(sum(adapted.get(name, 0) for name in weights) / total, left_out)
