"""Rows of W (cla-rows, 2606.13767, Appendix B): r outputs are trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor

from tunewise.catalog import Method
from tunewise.errors import ModelError, SpecError, StoreError
from tunewise.methods.adapters.base import Adapter
from tunewise.methods.draws import columns_of_link, one_hot
from tunewise.models.layers import Target
from tunewise.registry import ADAPTERS


class RowAdapter(Adapter):
    """dW = s S^T A: B = S^T is frozen, A is trained from 0; `where` is the numbers of the r rows."""

    rows: Tensor

    @classmethod
    def check_rank(cls, method: Method, rank: int, target: Target) -> None:
        cls.refuse_above(rank, target.out_features, "output rows", target)
        if target.fused:
            raise ModelError(f"layer {target.name}: rows of a fused projection are not offered; use 'cla'")

    @property
    def where(self) -> Tensor:
        return self.rows

    def draw_part(self, part: int) -> Tensor:
        return columns_of_link(self.method, **{**self.stream_options(part), "features": self.target.out_features})

    def place(self, where: Tensor) -> None:
        self.rows = where if self.b.is_meta else where.to(self.b.device)
        self.b.copy_(one_hot(self.rows, self.target.out_features).T)
        self.a.zero_()

    def identify(self, a: Tensor, b: Tensor) -> Tensor:
        rows = b.argmax(dim=0)
        if self.finished or not torch.equal(b.float(), one_hot(rows, len(b)).T.to(b.device)):
            raise StoreError(
                f"layer {self.target.name}: the saved B does not select {self.rank} rows, so this is no adapter of "
                f"{self.method.name!r} with that rank; load it as what it is"
            )
        return rows

    def set_update(self, a: Tensor, b: Tensor) -> None:
        self.a.copy_(a)

    def finish_link(self) -> None:
        raise SpecError(f"{self.method.name!r} has no chain: rows are trained in one link")

    def forward(  # type: ignore[override]
        self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: object
    ) -> Tensor:
        """The r trained rows are added to r output features of `result`: no product with the one-hot B."""
        update = F.linear(module.lora_dropout[self.name](x), self.a) * self.scale
        return result.index_add(-1, self.rows.to(x.device), update.to(result.dtype))


ADAPTERS.register("rows", RowAdapter)
