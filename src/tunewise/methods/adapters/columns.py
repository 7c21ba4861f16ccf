"""Column methods (cla, c3la, paca and their variants): r input columns of W are trained.

Folded, the active columns are written into W, and the forward costs nothing more. Where W can't be written (quantized,
tied, low precision, dropout, several column adapters at once), y + s x[..., cols] B^T computes the same.
Source: arXiv 2606.13767, Algorithms 1-4; 2503.01905 (PaCA).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunewise.catalog import Method
from tunewise.errors import StoreError
from tunewise.methods.adapters.base import Adapter
from tunewise.methods.adapters.column_fold import ColumnFold, columns_of_parts
from tunewise.methods.adapters.column_nodes import ColumnGradient, columns_beside
from tunewise.methods.adapters.fold import Fold
from tunewise.methods.adapters.fusing import is_observed, is_plain, is_transformed
from tunewise.methods.adapters.input_groups import ColumnSelection, InputGroup, take_columns
from tunewise.methods.adapters.products import add_to_parts, oriented, widen
from tunewise.methods.draws import columns_of_link, one_hot
from tunewise.models.layers import READ_TOGETHER, Target
from tunewise.registry import ADAPTERS


class ColumnAdapter(Adapter):
    """dW = s sum_j B_j S_j; `where` is the numbers of the columns that S selects (P r,)."""

    folds_active_link = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.selection = ColumnSelection()
        self._origin: Tensor | None = None
        """W0's columns with finished links, where the trained tensor is W's columns: update = b - origin."""

    @classmethod
    def check_rank(cls, method: Method, rank: int, target: Target) -> None:
        cls.refuse_above(rank, target.in_features, "input columns", target)

    @classmethod
    def share_inputs(cls, adapters: list[ColumnAdapter]) -> None:
        families: dict[tuple[str, frozenset[str], int], list[ColumnSelection]] = defaultdict(list)
        for adapter in adapters:
            parent, _, leaf = adapter.target.name.rpartition(".")
            siblings = next((names for names in READ_TOGETHER if leaf in names), frozenset({leaf}))
            families[parent, siblings, adapter.target.in_features].append(adapter.selection)
        for members in families.values():
            group = InputGroup(members)
            for member in members:
                member.group = group

    # --- factors ---------------------------------------------------------------------------------------------

    @property
    def holds_weights(self) -> bool:
        """Whether the trained tensor is W's columns themselves (PaCA) rather than an update of them."""
        return self.method.trained == "columns"

    @property
    def is_stock(self) -> bool:
        return super().is_stock and not self.holds_weights

    @property
    def where(self) -> Tensor:
        return self.selection.columns

    @property
    def exact_weights(self) -> Tensor | None:
        return self.b if self.holds_weights else None

    def draw_part(self, part: int) -> Tensor:
        return columns_of_link(self.method, **self.stream_options(part))

    def place(self, where: Tensor) -> None:
        self.selection.select(where, self.b.device)
        if not self.a.is_meta:
            self.a.data = one_hot(where, self.target.in_features).to(self.a.device, self.a.dtype)
        if self.holds_weights:
            self._origin = self._weight_columns()
            self.b.copy_(self._origin)
        else:
            self.b.zero_()

    def identify(self, a: Tensor, b: Tensor) -> Tensor:
        columns = a.argmax(dim=1)
        if not torch.equal(a.float(), one_hot(columns, a.shape[1]).to(a.device)):
            raise StoreError(
                f"layer {self.target.name}: the saved A is not a selector of columns, so this is no adapter of a "
                f"column method like {self.method.name!r}; load it as what it is"
            )
        return columns

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.a, self.b if self._origin is None else self.b - self._origin

    def set_update(self, a: Tensor, b: Tensor) -> None:
        self.b.copy_(b if self._origin is None else self._origin + b.to(self.b.dtype))

    def dense_a(self, where: Tensor, like: Tensor) -> Tensor:
        return one_hot(where, self.target.in_features).to(like.device, self.a.dtype)

    @torch.no_grad()
    def rebase(self, weight: Tensor) -> None:
        """W's own columns keep their update of the new W0."""
        if self.holds_weights:
            update = self.factors()[1].detach().clone()
            self.incoming_weight = weight
            self._origin = self._weight_columns()
            self.incoming_weight = None
            self.b.copy_(self._origin + update)

    def follow_device(self) -> None:
        super().follow_device()
        self.selection.move_to(self.b.device)
        if self._origin is not None:
            self._origin = self._origin.to(self.b.device, self.b.dtype)

    # --- the weight's own columns ----------------------------------------------------------------------------

    def _columns_with_links(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """All columns that any link selects, and W0 there plus the finished links, summed in at least fp32."""
        touched = torch.cat([columns for columns, _ in self.finished] + [self.where]).unique()
        total = weight.index_select(1, touched).to(torch.promote_types(weight.dtype, torch.float32))
        for columns, b in self.finished:
            places = torch.searchsorted(touched, columns).split(self.rank)
            for part, place, block in zip(self.target.parts, places, self.parts_of(b)):
                total[part.indices] = total[part.indices].index_add(1, place, (self.scale * block).to(total.dtype))
        return touched, total

    def _weight_columns(self) -> Tensor:
        """The active columns of W0 (finished links added) in B's dtype, stacked."""
        self.unfold()
        base_layer = self.layer.get_base_layer()
        weight = oriented(base_layer)
        if self.incoming_weight is not None:
            weight = self.incoming_weight.to(self.b.device)
            weight = weight.T if isinstance(base_layer, Conv1D) else weight
        if weight.is_meta:
            return torch.empty_like(self.b)
        if not weight.is_floating_point() or type(weight.data) is not Tensor:
            return torch.zeros_like(self.b)  # quantized: the columns can't be held, an update of them can
        touched, total = self._columns_with_links(weight.detach())
        return torch.cat(columns_of_parts(total, touched, self.where, self.target)).to(self.b.dtype)

    # --- in the layer ----------------------------------------------------------------------------------------

    def prepare_layer(self) -> None:
        super().prepare_layer()
        # The selector in the base's own precision: PEFT then passes x on as it is, without a wider copy.
        weight = self.layer.get_base_layer().weight
        if weight.is_floating_point():
            self.a.data = self.a.data.to(weight.dtype)

    def make_fold(self) -> Fold:
        with torch.no_grad():
            touched, total = self._columns_with_links(oriented(self.layer.get_base_layer()).detach())
            return ColumnFold(self, self.selection, touched, total, self.holds_weights)

    def fused_forward(self, x: Tensor) -> Tensor | None:
        layer = self.layer
        if not layer.may_fuse or is_transformed():
            return None
        layer.sync_fold()
        fold = layer._fold
        return self._fused_beside(x) if fold is None else cast("Tensor | None", fold.fused_forward(x))

    def _fused_beside(self, x: Tensor) -> Tensor | None:
        """W x + s B S x as one node, where B can't be in W (its precision would round the update away)."""
        layer = self.layer
        base = layer._modules["base_layer"]
        if type(self) is not ColumnAdapter or layer._disable_adapters or layer.merged_adapters:
            return None
        if not is_plain(base) or self.target.fused or is_observed() or x.dtype != base.weight.dtype:
            return None
        if type(layer.lora_dropout[self.name]) is not nn.Identity:
            return None
        parameters = (base.weight, base.bias, self.b, self._origin)
        return cast(Tensor, columns_beside(x, *parameters, self.selection, self.finished, self.scale))

    def forward(  # type: ignore[override]
        self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: object
    ) -> Tensor:
        """`result` is the base layer's output, the fold included where there is one; returns the layer's output."""
        fold = self.layer._fold
        if fold is not None and fold.name == self.name:
            if not (torch.is_grad_enabled() and self.b.requires_grad):
                return result
            with torch.no_grad():
                taken = self.selection.gather(x).to(result.dtype)
            return cast(Tensor, ColumnGradient.apply(result, taken, self.b, self.scale, self.target.parts))
        dropout = self.layer.lora_dropout[self.name]
        total = widen(result, self.b) if self.finished else result
        for columns, b in [*self.finished, (self.where, self.factors()[1])]:
            taken = dropout(take_columns(x, columns)).view(*x.shape[:-1], len(columns))
            taken = taken.to(torch.promote_types(taken.dtype, total.dtype))
            blocks = self.parts_of((b * self.scale).to(taken.dtype))
            pieces = [F.linear(part, block) for part, block in zip(taken.split(self.rank, dim=-1), blocks)]
            total = add_to_parts(total, pieces, self.target.parts)
        return total.to(result.dtype)


ADAPTERS.register("columns", ColumnAdapter)
