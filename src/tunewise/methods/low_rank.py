"""Low-rank factors where stock PEFT has no word for it: chains of LoRA (cola, rac), slices of fused projections, and
rows (cla-rows). Plain lora, asym, lora+, rslora and lora-one on ordinary layers are PEFT's own forward.

Finished links stand in W itself where that can be written (`folded.py`), and the step costs what it cost in the first
link; elsewhere they are added beside the active one (their factors are frozen, nothing is kept for them).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor

from tunewise.errors import SpecError, StoreError
from tunewise.methods.columns import add_to_parts
from tunewise.methods.layer_adapter import LayerAdapter
from tunewise.methods.row_space import columns_of_link, one_hot, random_factor


class LowRankAdapter(LayerAdapter):
    """dW = s sum_j B_j A_j; `finished` holds (A_j (P r, m), stacked B_j)."""

    def __init__(self, *args: Any, fold: str = "auto", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fold_mode = fold

    @torch.no_grad()
    def draw(self) -> None:
        if self.a.is_meta:
            return
        drawn = [
            random_factor(
                self.method.a_law,
                seed=self.seed,
                layer=self.target.name if len(self.target.parts) == 1 else f"{self.target.name}[{p}]",
                link=self.link,
                rank=self.rank,
                features=self.target.in_features,
            )
            for p in range(len(self.target.parts))
        ]
        self.a.copy_(torch.cat(drawn))
        self.b.zero_()

    def link_factors(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self.finished
        yield self.a.detach(), self.b.detach()

    def take_link(self, a: Tensor, b: Tensor, *, active: bool) -> None:
        if active:
            self.a.copy_(a)
            self.b.copy_(b)
        else:
            self.finished.append((a.detach().clone(), b.detach().clone()))

    def finish_link(self) -> None:
        self.finished.append((self.a.detach().clone(), self.b.detach().clone()))

    def release(self) -> None:
        from tunewise.methods.fold import unfold

        unfold(self.layer)

    def engage(self) -> None:
        from tunewise.methods.fold import FoldingLayer

        if isinstance(self.layer, FoldingLayer):
            self.layer.sync_fold()

    def forward(  # type: ignore[override]
        self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: object
    ) -> Tensor:
        """`result` is the base layer's output; returns the layer's output."""
        x = module.lora_dropout[self.name](x)
        fold = getattr(module, "_fold", None)
        beside = [] if fold is not None and fold.adapter is self else self.finished
        for a, b in [*beside, (self.a, self.b)]:
            inner = F.linear(x, a.to(self.a.device, self.a.dtype))
            pieces = [
                F.linear(inner_part, block) * self.scale
                for inner_part, block in zip(
                    inner.split(self.rank, dim=-1), self.parts_of(b.to(self.b.device, self.b.dtype))
                )
            ]
            result = add_to_parts(result, pieces, self.target.parts)
        return result


class RowAdapter(LayerAdapter):
    """dW = s S^T A: r rows of W (outputs) are trained, B = S^T frozen, A from 0 (2606.13767, Appendix B)."""

    rows: Tensor

    @torch.no_grad()
    def draw(self) -> None:
        self.rows = columns_of_link(
            self.method,
            seed=self.seed,
            layer=self.target.name,
            link=0,
            rank=self.rank,
            features=self.target.out_features,
        )
        if not self.b.is_meta:
            self.rows = self.rows.to(self.b.device)
        self.b.copy_(one_hot(self.rows, self.target.out_features).T)
        self.a.zero_()

    def link_factors(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.a.detach(), self.b.detach()

    def take_link(self, a: Tensor, b: Tensor, *, active: bool) -> None:
        rows = b.argmax(dim=0)
        if not active or not torch.equal(b.float(), one_hot(rows, len(b)).T.to(b.device)):
            raise StoreError(
                f"layer {self.target.name}: the saved B does not select {self.rank} rows, so this is no adapter of "
                f"{self.method.name!r} with that rank; load it as what it is"
            )
        self.a.copy_(a)
        self.b.copy_(b)
        self.rows = rows

    def finish_link(self) -> None:
        raise SpecError(f"{self.method.name!r} has no chain: rows are trained in one link")

    def forward(  # type: ignore[override]
        self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: object
    ) -> Tensor:
        """`result` is the base layer's output; the r trained rows are added to r of its features."""
        update = F.linear(module.lora_dropout[self.name](x), self.a) * self.scale
        return result.index_add(-1, self.rows.to(x.device), update.to(result.dtype))
