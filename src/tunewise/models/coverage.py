"""How much of a model's blocks an adapter is on, and which weights it leaves out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from tunewise.models.layers import IN_BLOCK, Target, linear_layers, shape_of
from tunewise.store.records import Coverage


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
    left: Counter[str] = Counter()
    for name, count in weights.items():
        left[IN_BLOCK.split(name, maxsplit=1)[1]] += count - adapted.get(name, 0)
    return Coverage(
        weights=sum(weights.values()),
        adapted=sum(adapted.get(name, 0) for name in weights),
        left_out={name: count for name, count in left.most_common() if count},
    )
