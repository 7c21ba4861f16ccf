"""Weights that several modules share, such as a language model's head and its token embeddings."""

from __future__ import annotations

from collections import Counter
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PretrainedConfig


def shared_storages(model: nn.Module) -> set[int]:
    """Storages with more than one parameter name (tied weights): writing into one would change the others."""
    storages = Counter(storage_of(p) for _, p in model.named_parameters(remove_duplicate=False))
    return {storage for storage, count in storages.items() if storage is not None and count > 1}


def storage_of(parameter: Tensor) -> int | None:
    """The address of the values; None for a tensor without plain storage (quantized, meta)."""
    if type(parameter.data) is not Tensor or parameter.is_meta:
        return None
    return parameter.untyped_storage().data_ptr() or None


def untie(layer: Any, config: PretrainedConfig | None) -> None:
    """Give a layer that is about to be merged a weight of its own, and let the model's configuration say so: merged
    into the shared weight, the update would change the embeddings too."""
    base: nn.Linear = layer.get_base_layer()
    weight = base.weight
    base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=weight.requires_grad)
    for part in (config, config.get_text_config()) if config is not None else ():
        part.tie_word_embeddings = False


def untie_adapted(model: nn.Module) -> None:
    """`untie` every adapted layer of a model that shares its weight."""
    shared = shared_storages(model)
    config = getattr(model, "config", None)
    for module in model.modules():
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else None
        if isinstance(base, nn.Linear) and storage_of(base.weight) in shared:
            untie(module, config)
