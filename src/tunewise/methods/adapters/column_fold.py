"""A column adapter's active columns, written into W: the layer is one product, and W0's columns are kept."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunewise.methods.adapters.base import Adapter
from tunewise.methods.adapters.column_nodes import refuse_second_derivative
from tunewise.methods.adapters.fold import Fold, Slot
from tunewise.methods.adapters.fusing import fast_apply, is_observed, is_plain
from tunewise.methods.adapters.input_groups import ColumnSelection, run_of
from tunewise.methods.adapters.products import gradient_of_b
from tunewise.models.layers import Target


def columns_of_parts(total: Tensor, touched: Tensor, columns: Tensor, target: Target) -> list[Tensor]:
    """Per part (rows, r): its own `columns` of `total`, which holds the columns `touched`."""
    places = torch.searchsorted(touched, columns).chunk(len(target.parts))
    return [total[part.indices].index_select(1, place) for part, place in zip(target.parts, places)]


class ColumnFold(Fold):
    """W[:, cols] = W0[:, cols] + finished links + s B, per part (PaCA: the trained columns as they are)."""

    follows_updates = True

    def __init__(
        self, adapter: Adapter, selection: ColumnSelection, touched: Tensor, total: Tensor, holds_weights: bool
    ) -> None:
        super().__init__(adapter.layer, adapter.name, adapter.target.name)
        self.adapter = adapter
        self.selection = selection
        self.holds_weights = holds_weights
        self.dtype = adapter.b.dtype
        self.parts = adapter.target.parts if adapter.target.fused else None
        self.columns = list(selection.columns.split(adapter.rank))
        self.runs = [run_of(columns) for columns in self.columns]
        self.base = columns_of_parts(total, touched, selection.columns, adapter.target)
        self.touched = touched
        self.original = self.view.index_select(1, touched)
        if adapter.finished:
            self.view.index_copy_(1, touched, total.to(self.original.dtype))
        self.write()

    def slots(self) -> list[Slot]:
        """The columns themselves where they are a run, else the rows that hold them."""
        view, adapter = self.view, self.adapter
        blocks = adapter.parts_of(adapter.b.detach())
        return [
            Slot(
                view[part.indices] if run is None else view[part.indices, run[0] : run[1]],
                columns if run is None else None,
                base,
                block,
            )
            for part, columns, run, base, block in zip(
                adapter.target.parts, self.columns, self.runs, self.base, blocks, strict=True
            )
        ]

    @torch.no_grad()
    def undo(self) -> None:
        self.view.index_copy_(1, self.touched, self.original)

    def pristine(self) -> Tensor:
        weight = self.weight.detach().clone()
        view = weight.T if isinstance(self.layer.get_base_layer(), Conv1D) else weight
        view.index_copy_(1, self.touched, self.original)
        return weight

    def fused_forward(self, x: Tensor) -> Tensor | None:
        """The layer's own product, where the adapter is active and W is up to date."""
        # These checks are most of what a column method costs in a small layer: inline, and none is repeated.
        layer = self.layer
        base = layer._modules["base_layer"]
        own = base._parameters
        weight = own.get("weight")
        active = layer._active_adapter
        if (
            (active != self.active and active != self.name)
            or weight is not self.weight
            or layer.scaling[self.name] != self.scale
            or layer._disable_adapters
            or layer.merged_adapters
            or not layer.may_fuse
            or x.dtype != weight.dtype
            or not is_plain(base)
            or type(layer._modules["lora_dropout"]._modules[self.name]) is not nn.Identity
            or is_observed()
        ):
            return None
        bias = own["bias"]
        b: Any = self.up._parameters["weight"]
        written, version, address, _ = self.written
        if b is not written or b._version != version or b.data_ptr() != address:
            self.write()
        if not (b.requires_grad and torch.is_grad_enabled()):
            return F.linear(x, weight, bias)
        return cast(Tensor, _column_linear(x, weight, bias, b, self))


class _ColumnLinear(torch.autograd.Function):
    """x (..., m) -> x W^T + bias, B already being in W; grad_B = s grad_y^T x[..., cols]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, b: Tensor, fold: ColumnFold) -> Tensor:
        ctx.save_for_backward(fold.selection.gather(x), weight)
        ctx.fold = fold
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        rows, weight = ctx.saved_tensors
        fold = ctx.fold
        flat = grad_y.reshape(-1, grad_y.shape[-1])
        # First the small product: grad_y was just computed and is in the cache, which the large product fills with W.
        grad_b = gradient_of_b(flat, rows, fold.scale, fold.dtype, fold.parts)
        grad_x = torch.matmul(grad_y, weight) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, grad_b, None


_column_linear = fast_apply(_ColumnLinear)
