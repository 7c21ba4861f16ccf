"""Bytes that autograd keeps between forward and backward: exact, and free of the machine's noise."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def saved_for_backward(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Bytes of storage that autograd keeps between forward and backward of one batch; parameters, buffers and the
    batch itself, which are there anyway, not counted, and a storage that is kept twice counted once."""
    there = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers(), *batch.values()]}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a node that had its own output to keep would keep itself, for ever

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch).loss  # the graph is alive until here, so no storage is given out twice
    del loss
    return sum(kept.values())
