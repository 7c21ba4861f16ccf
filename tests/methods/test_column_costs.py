"""What a folded column method adds to a layer's GEMM: one node, no copy of an output, and only the columns it needs."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tunewise
from contracts import models
from methods import layers

RANK, IN, OUT = layers.RANK, layers.IN, layers.OUT


class Made(TorchDispatchMode):
    """Counts tensors of `numel` numbers that operations make in storages of their own."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.count, self.known = numel, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor) and value.numel() == self.numel:
                self.count += value.untyped_storage().data_ptr() not in inputs
        return result


@pytest.mark.parametrize(
    "kind",
    ["linear", "linear without bias", "conv1d"],
)
def test_the_backward_makes_no_copy_of_the_outputs_gradient(kind):
    """Rows (2, 50), as from a transformer: the tensors of that size that a folded layer's backward makes are those
    that the frozen layer's makes."""
    counts = []
    for adapted in (False, True):
        model = layers.make(kind)
        model.requires_grad_(False)
        if adapted:
            model = tunewise.attach(model, "cla", rank=RANK, targets=["layer"])
        output = model(torch.randn(2, 50, IN, requires_grad=True))
        gradient = torch.randn(2, 50, OUT)
        with Made(gradient.numel()) as made:
            output.backward(gradient)
        counts.append(made.count)
    assert counts[1] == counts[0]


class CrossAttention(nn.Module):
    """A query that reads one input, a key and a value that read another, as in every encoder-decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(IN, IN) for _ in range(3))

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        return self.q(x) @ (self.k(memory).T @ self.v(memory))  # type: ignore[no-any-return]


def test_in_cross_attention_queries_keep_their_own_columns_and_nothing_is_left_behind():
    """r columns for q on 10 rows, 2 r for k and v on 30, from the second step on at the latest; afterwards none."""
    model = tunewise.attach(CrossAttention(), "r-cla", rank=RANK, targets=["q", "k", "v"])
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    for _ in range(2):
        x, memory, kept = torch.randn(10, IN), torch.randn(30, IN), dict[int, int]()

        def pack(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if tensor.shape[-1] in (RANK, 2 * RANK, 3 * RANK) and storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(x, memory)
        output.sum().backward()
    assert sum(kept.values()) == (10 * RANK + 30 * 2 * RANK) * 4
    del output
    gc.collect()
    left = [adapter.selection.group._taken for adapter in tunewise_adapters(model)]
    assert all(taken is None for taken in left)


def tunewise_adapters(model: Any) -> list[Any]:
    from tunewise.methods.adapters.base import layer_adapters

    return layer_adapters(model)


def test_under_new_base_weights_pacas_forward_merge_and_saved_form_agree():
    """`load_state_dict` of base weights alone, with trained columns: whichever is meant, all three mean it; 1e-5."""
    model, inputs = tunewise.attach(models.make("llama-causal"), "paca", rank=RANK), models.batch("llama-causal")
    models.stir(model)
    other, state = models.make("llama-causal", seed=5), {}
    adapted = {target.name for target in tunewise.attachment(model).targets}
    for key, value in other.state_dict().items():
        layer, _, leaf = key.rpartition(".")
        state["base_model.model." + (f"{layer}.base_layer.{leaf}" if layer in adapted else key)] = value
    model.load_state_dict(state, strict=False)
    found = models.logits(model, inputs)
    for layer, dense in tunewise.delta(model).items():
        other.get_submodule(layer).weight.data += dense
    torch.testing.assert_close(found, models.logits(other, inputs), rtol=0, atol=1e-5)
