"""Column methods (cla, c3la, paca and their kin): r input columns of W are trained, and cost nothing in the forward.

Folded, the layer is one GEMM: the active columns are written into W (`fold.py`), and the function below hands the
output through and gives grad_B = s grad_y^T x[..., cols], keeping a copy of just those columns of x. Where W can't
be written (quantized, tied, low precision, dropout, several column adapters at once), the additive form
y + s x[..., cols] B^T does the same. The one-hot A is stored for the saved form; it is never multiplied.

Source: arXiv 2606.13767, Algorithms 1-4; 2503.01905 (PaCA).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunewise.errors import StoreError
from tunewise.methods.gather import InputGroup, run_of, take_columns
from tunewise.methods.layer_adapter import LayerAdapter
from tunewise.methods.row_space import columns_of_link, one_hot
from tunewise.models.layers import Part


class ColumnAdapter(LayerAdapter):
    """B (n, r) on r selected columns: dW = s B S. With `trained="columns"` the tensor is W[:, cols] itself.

    `finished` holds (columns (P r,), B) of earlier links, B already as an update (not as columns of W).
    """

    columns: Tensor
    """The active link's columns, part after part: int64 (P r,), on the layer's device."""
    run: tuple[int, int] | None
    """[start, stop) where they are one run."""

    def __init__(self, *args: Any, fold: str = "auto", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fold_mode = fold
        self.group = InputGroup([self])
        self._origin: Tensor | None = None

    @property
    def holds_weights(self) -> bool:
        """Whether the trained tensor is W's columns themselves (PaCA) rather than an update of them."""
        return self.method.trained == "columns"

    @property
    def is_stock(self) -> bool:
        return super().is_stock and not self.holds_weights

    # --- factors ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def draw(self) -> None:
        self._select(
            torch.cat(
                [
                    columns_of_link(
                        self.method,
                        seed=self.seed,
                        layer=self._stream_name(p),
                        link=self.link,
                        rank=self.rank,
                        features=self.target.in_features,
                    )
                    for p in range(len(self.target.parts))
                ]
            )
        )
        if self.holds_weights:
            self._origin = self._weight_columns()
            self.b.copy_(self._origin)
        else:
            self.b.zero_()

    def _stream_name(self, part: int) -> str:
        return self.target.name if len(self.target.parts) == 1 else f"{self.target.name}[{part}]"

    def _select(self, columns: Tensor) -> None:
        self.run = None if columns.is_meta else run_of(columns)
        self.columns = columns.clone() if self.b.is_meta else columns.to(self.b.device)
        if not self.a.is_meta:
            self.a.data = one_hot(columns, self.target.in_features).to(self.a.device, self.a.dtype)
        self.group.forget()

    @torch.no_grad()
    def rebase(self, weight: Tensor) -> None:
        """W0 is about to be `weight`: W's own columns keep their update of it."""
        if self.holds_weights:
            update = self.update().detach().clone()
            self.incoming_weight = weight
            self._origin = self._weight_columns()
            self.incoming_weight = None
            self.b.copy_(self._origin + update)

    def update(self) -> Tensor:
        """The active link's B as an update of the columns, stacked: (sum of the parts' rows, r)."""
        if not self.holds_weights:
            return self.b
        assert self._origin is not None
        return self.b - self._origin

    def link_factors(self) -> Iterator[tuple[Tensor, Tensor]]:
        for columns, b in self.finished:
            yield one_hot(columns, self.target.in_features).to(b.device, self.a.dtype), b
        yield self.a.detach(), self.update().detach()

    def take_link(self, a: Tensor, b: Tensor, *, active: bool) -> None:
        columns = a.argmax(dim=1)
        if not torch.equal(a.float(), one_hot(columns, a.shape[1]).to(a.device)):
            raise StoreError(
                f"layer {self.target.name}: the saved A is not a selector of columns, so this is no adapter of a "
                f"column method like {self.method.name!r}; load it as what it is"
            )
        if not active:
            self.finished.append((columns.to(self.b.device), b.detach().clone().to(self.b.device)))
            return
        self._select(columns)
        if self.holds_weights:
            self._origin = self._weight_columns()
            self.b.copy_(self._origin + b.to(self.b.dtype))
        else:
            self.b.copy_(b)

    def finish_link(self) -> None:
        self.finished.append((self.columns, self.update().detach().clone()))

    def release(self) -> None:
        from tunewise.methods.fold import unfold

        unfold(self.layer)

    def engage(self) -> None:
        from tunewise.methods.fold import FoldingLayer

        if isinstance(self.layer, FoldingLayer):
            self.layer.sync_fold()

    # --- the weight's own columns ----------------------------------------------------------------------------

    def split_columns(self, columns: Tensor) -> list[Tensor]:
        """Stacked columns as one (r,) per part."""
        return list(columns.split(self.rank))

    def base_columns(self, weight: Tensor) -> list[Tensor]:
        """Per part, W0's active columns plus what finished links added there, in at least fp32: (rows, r)."""
        wide = torch.promote_types(weight.dtype, torch.float32)
        parts = []
        for p, ((start, stop), columns) in enumerate(zip(self.target.parts, self.split_columns(self.columns))):
            base = weight[start:stop].index_select(1, columns).to(wide)
            for done, b in self.finished:
                base = _add_where_equal(base, columns, self.split_columns(done)[p], self.scale * self.parts_of(b)[p])
            parts.append(base)
        return parts

    def _weight_columns(self) -> Tensor:
        """The active columns of W0 (with finished links on them) in B's dtype, stacked."""
        self.release()
        base_layer = self.layer.get_base_layer()
        weight = oriented(base_layer)
        if self.incoming_weight is not None:  # a whole state is being loaded, and W0 is about to be this
            weight = self.incoming_weight.to(self.b.device)
            weight = weight.T if isinstance(base_layer, Conv1D) else weight
        if weight.is_meta:
            return torch.empty_like(self.b)
        if not weight.is_floating_point() or type(weight.data) is not Tensor:
            return torch.zeros_like(self.b)  # quantized: the columns can't be held, an update of them can
        return torch.cat(self.base_columns(weight.detach())).to(self.b.dtype)

    # --- forward ---------------------------------------------------------------------------------------------

    def forward(  # type: ignore[override]
        self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: Any
    ) -> Tensor:
        """`result` is the base layer's output, the fold included where there is one; returns the layer's output."""
        fold = getattr(module, "_fold", None)
        if fold is not None and fold.adapter is self:
            if not (torch.is_grad_enabled() and self.b.requires_grad):
                return result
            with torch.no_grad():
                taken = self.group.gather(self, x).to(result.dtype)
            return cast(Tensor, _HandThrough.apply(result, taken, self.b, self.scale, self.target.parts))
        return self._additive(x, result)

    def _additive(self, x: Tensor, result: Tensor) -> Tensor:
        dropout = self.layer.lora_dropout[self.name]
        for columns, b, scale in [
            *((columns, b, self.scale) for columns, b in self.finished),
            (self.columns, self.update(), self.scale),
        ]:
            taken = dropout(take_columns(x, columns)).view(*x.shape[:-1], len(columns))
            factor = (b * scale).to(taken.dtype)
            pieces = [
                F.linear(columns_of_part, block)
                for columns_of_part, block in zip(taken.split(self.rank, dim=-1), self.parts_of(factor))
            ]
            result = add_to_parts(result, pieces, self.target.parts)
        return result


class _HandThrough(torch.autograd.Function):
    """y -> y, with grad_B = s grad_y^T x_cols, block under block; x_cols (N, P r) is all that is kept."""

    @staticmethod
    def forward(y: Tensor, taken: Tensor, b: Tensor, scale: float, parts: tuple[Part, ...]) -> Tensor:
        # Not a view, which the next module could not change in place; and not y marked dirty: an output that is a view
        # (any layer with a bias) would then be copied three times in the backward.
        return y.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, taken, b, ctx.scale, ctx.parts = inputs
        ctx.save_for_backward(taken)
        ctx.dtype = b.dtype

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("a folded column method has no second derivative; attach it with fold='never'")
        (rows,) = ctx.saved_tensors
        grad_b = gradient_of_b(grad_y.reshape(-1, grad_y.shape[-1]), rows, ctx.scale, ctx.dtype, ctx.parts)
        return grad_y, None, grad_b, None, None


def gradient_of_b(
    grad_y: Tensor, rows: Tensor, scale: float, dtype: torch.dtype, parts: tuple[Part, ...] | None = None
) -> Tensor:
    """s grad_y^T rows, block under block: grad_y (N, n), rows (N, P r) -> (sum of the parts' rows, r).

    Where there is arithmetic to speak of, a CPU takes the product as rows^T grad_y, r x n: 1.3 to 2 times as fast as
    the other order in BLAS. What is returned is then a transposed view; autograd lays it out as B is.
    """
    if parts is not None and parts != ((0, grad_y.shape[-1]),):
        rank = rows.shape[1] // len(parts)
        blocks = [
            gradient_of_b(grad_y[:, start:stop], rows[:, p * rank : (p + 1) * rank], scale, dtype)
            for p, (start, stop) in enumerate(parts)
        ]
        return torch.cat(blocks)
    if rows.dtype != grad_y.dtype:
        rows = rows.to(grad_y.dtype)
    if dtype != grad_y.dtype:
        return torch.mm(grad_y.T, rows).to(dtype).mul_(scale)
    if grad_y.is_cuda or torch.compiler.is_compiling() or grad_y.numel() < _SMALL:
        return scaled_product(grad_y.T, rows, scale)
    return scaled_product(rows.T, grad_y, scale).T


_SMALL = 2**17


def scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """scale x left @ right in one kernel."""
    if scale == 1.0 or torch.compiler.is_compiling():
        product = torch.mm(left, right)
        return product if scale == 1.0 else product * scale
    return torch.addmm(left.new_empty(1), left, right, beta=0, alpha=scale)


def add_to_parts(result: Tensor, pieces: list[Tensor], parts: tuple[Part, ...]) -> Tensor:
    """`result` with each piece added to its run of output features; `result` itself is left as it is."""
    if len(parts) == 1 and parts[0] == (0, result.shape[-1]):
        return result + pieces[0].to(result.dtype)
    blocks: list[Tensor] = []
    done = 0
    for (start, stop), piece in zip(parts, pieces):
        if start > done:
            blocks.append(result[..., done:start])
        blocks.append(result[..., start:stop] + piece.to(result.dtype))
        done = stop
    if done < result.shape[-1]:
        blocks.append(result[..., done:])
    return torch.cat(blocks, dim=-1)


def oriented(base_layer: nn.Module) -> Tensor:
    """The weight as n x m (out x in), a view where the layer stores it transposed."""
    weight = cast(Tensor, base_layer.weight)
    return weight.T if isinstance(base_layer, Conv1D) else weight


def _add_where_equal(base: Tensor, columns: Tensor, others: Tensor, update: Tensor) -> Tensor:
    """`base` (rows, r) at `columns`, plus those columns of `update` (rows, r at `others`) that are the same ones."""
    same = columns[:, None] == others[None, :]
    if not bool(same.any()):
        return base
    return base + update.to(base.dtype) @ same.T.to(base.dtype)
