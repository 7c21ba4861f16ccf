"""The bytes that tensors take while a step runs, counted on the meta device: no weights, no arithmetic, exact sizes."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers.integrations import moe


class LiveMemory(TorchDispatchMode):
    """While it is active, counts the storages made and freed: `now` and `peak`, in bytes. What existed before is not
    counted. Tensors on other devices that meet a meta tensor (the column numbers of an adapter) stand in as meta."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: object, types: object, args: object = (), kwargs: object = None) -> Any:
        flat, tree = tree_flatten((args, kwargs or {}))
        if any(isinstance(a, Tensor) and a.is_meta for a in flat):
            flat = [_as_meta(a) for a in flat]
            args, kwargs = tree_unflatten(flat, tree)
        for tensor in flat:
            if isinstance(tensor, Tensor):  # a storage first met here was there before; a view of it adds nothing
                self._count(tensor.untyped_storage(), 0)
        result = _run(func, args, kwargs or {})
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._count(storage, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, storage: torch.UntypedStorage, size: int) -> None:
        key = id(storage)
        if key in self._storages:
            return

        def freed(_: object) -> None:
            self.now -= size
            self._storages.pop(key, None)

        self.now += size
        self._storages[key] = weakref.ref(storage, freed)


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """The operation; where its result depends on values, as if a mask were true once in each of its rows (T5 and BART
    classify by the one end-of-text token of each text), and as if every question about values were answered with no:
    models ask whether a mask is true throughout, and whether a text begins or ends with padding."""
    if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta and args[0].dtype == torch.bool:
        return False
    if func is torch.ops.aten.unique_consecutive.default and args[0].is_meta:
        return args[0][:1], args[0].new_empty(0), args[0].new_empty(0)
    if func in _INDEXING and args[0].is_meta:
        places: list[Tensor | None] = []
        for index in args[1]:
            is_mask = index is not None and index.dtype == torch.bool
            places += [torch.empty(len(index), dtype=torch.long, device="meta")] * index.dim() if is_mask else [index]
        args = (args[0], places, *args[2:])
    return func(*args, **kwargs)


_INDEXING = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
)


def _as_meta(value: object) -> object:
    if isinstance(value, Tensor) and not value.is_meta and value.dim() > 0:
        return torch.empty_like(value, device="meta")
    return value


@contextmanager
def fused_kernels(*, dropout_is_fused: bool) -> Iterator[None]:
    """Attention that keeps what the fused kernels keep (query, key, value, output and a log-sum a row), not the
    matrices of weights, which is what the meta device's own path would keep; and experts' grouped products in every
    precision, which the meta device has in bf16 alone.

    `dropout_is_fused`: CUDA's kernels take dropout; the CPU's do not, and with it fall back to the matrices.
    """
    plain = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        dropout = kwargs.get("dropout_p", args[1] if len(args) > 1 else 0.0)
        if dropout and not dropout_is_fused:
            return plain(query, key, value, *args, **kwargs)
        output: Tensor = _Fused.apply(query, key, value)
        return output

    with (
        mock.patch.object(F, "scaled_dot_product_attention", attention),
        mock.patch.object(moe, "_can_use_grouped_mm", return_value=False),
    ):
        yield


class _Fused(torch.autograd.Function):
    """Sizes alone: the output is like the query with the value's width."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, rows)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
