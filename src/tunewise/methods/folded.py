"""What stands in a layer's weight while it is folded: the active columns of a column adapter, or the finished links of
a low-rank chain; and the way back to W0, bit for bit.

Columns keep W0's touched columns aside. Low-rank links touch every entry, and a sum taken away again would change about
a quarter of them in the last bit, so all of W0 is kept aside: a copy of the adapted weights, from the second link on.
Whatever is written is written afresh from what was kept, summed in at least fp32 and rounded once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunewise.methods.columns import ColumnAdapter, oriented
from tunewise.methods.gather import run_of
from tunewise.methods.low_rank import LowRankAdapter


class Folded(ABC):
    """One adapter's share in its layer's weight. Subclasses say what it is."""

    adapter: ColumnAdapter | LowRankAdapter

    def __init__(self, adapter: ColumnAdapter | LowRankAdapter) -> None:
        self.adapter = adapter
        self.name = adapter.name
        self.active = [adapter.name]
        self.weight: Tensor = adapter.layer.get_base_layer().weight
        self.up: nn.Module = adapter.layer.lora_B[adapter.name]
        self.scale = adapter.scale

    @property
    def view(self) -> Tensor:
        """The weight as it is now, n x m (out x in), without a graph."""
        return oriented(self.adapter.layer.get_base_layer()).detach()

    @abstractmethod
    def undo(self) -> None:
        """W is W0 again, bit for bit."""

    @abstractmethod
    def pristine(self) -> Tensor:
        """A copy of W0 in the layer's own orientation; W itself keeps the fold."""

    def pristine_of(self, weight: Tensor) -> Tensor:
        """W0, where `weight` stands in the weight's place for a call (`torch.func.functional_call`): itself where it is
        W0, as in a `state_dict`, or W0 for a copy of the folded weight, as `named_parameters` shows it.

        Raises RuntimeError for another weight: whether an update stands in it already can't be known.
        """
        pristine, like = self.pristine(), self.weight
        if (weight.shape, weight.dtype, weight.device) == (like.shape, like.dtype, like.device):
            if torch.equal(weight, pristine):
                return weight
            if torch.equal(weight, like):
                return pristine
        raise RuntimeError(
            f"layer {self.adapter.target.name}: a weight is called that is neither W0 nor the one that the update was "
            "folded into; attach with fold='never'"
        )


class FoldedColumns(Folded):
    """W[:, cols] = W0[:, cols] + finished links + s B, per part (PaCA: the trained columns as they are)."""

    adapter: ColumnAdapter

    @torch.no_grad()
    def __init__(self, adapter: ColumnAdapter) -> None:
        super().__init__(adapter)
        view = self.view
        self.touched = torch.cat([columns for columns, _ in adapter.finished] + [adapter.columns]).unique()
        self.original = view.index_select(1, self.touched)
        self.base = adapter.base_columns(view)
        self.dtype = adapter.b.dtype
        self.parts = adapter.target.parts if adapter.target.fused else None
        self.columns = adapter.split_columns(adapter.columns)
        self.runs = [run_of(columns) for columns in self.columns]
        self.written: tuple[Tensor, int, int, Tensor] = (adapter.b, -1, 0, adapter.b.detach())
        """The B that stands in the weight, its version, where its numbers lay, and those numbers: held, so that no
        other tensor can come to lie there and be taken for them."""
        if adapter.finished:
            view.index_copy_(1, self.touched, self._with_finished_links(view.dtype))
        self.write()

    def _with_finished_links(self, dtype: torch.dtype) -> Tensor:
        """The touched columns with all finished links on them: summed in at least fp32, rounded once."""
        adapter = self.adapter
        total = self.original.to(torch.promote_types(dtype, torch.float32), copy=True)
        for columns, b in adapter.finished:
            places = torch.searchsorted(self.touched, columns)
            for (start, stop), place, block in zip(
                adapter.target.parts, adapter.split_columns(places), adapter.parts_of(b)
            ):
                total[start:stop].index_add_(1, place, (adapter.scale * block).to(total.dtype))
        return total.to(dtype)

    def slots(self) -> list[Slot]:
        """Where each part of B goes: the columns themselves where they are a run, else the rows that they are in."""
        view, adapter = self.view, self.adapter
        blocks = adapter.parts_of(adapter.b.detach())
        return [
            Slot(
                view[start:stop] if run is None else view[start:stop, run[0] : run[1]],
                columns if run is None else None,
                base,
                block,
            )
            for (start, stop), columns, run, base, block in zip(
                adapter.target.parts, self.columns, self.runs, self.base, blocks, strict=True
            )
        ]

    def write(self) -> None:
        WriteBack([self]).run()

    def is_stale(self) -> bool:
        """Whether B has changed since `write`, or another tensor stands in its place (a functional call, `.data`
        assigned). What torch does not count can't be seen: a write into `.data`, a fused function called by hand;
        call `tunewise.refold(model)` after those."""
        now, version, where, _ = self.written
        b = self.up._parameters["weight"]
        return b is not now or version != now._version or where != now.data_ptr()

    @torch.no_grad()
    def undo(self) -> None:
        self.view.index_copy_(1, self.touched, self.original)

    def pristine(self) -> Tensor:
        weight = self.weight.detach().clone()
        view = weight.T if isinstance(self.adapter.layer.get_base_layer(), Conv1D) else weight
        view.index_copy_(1, self.touched, self.original)
        return weight


class FoldedLinks(Folded):
    """W = W0 + the finished links of a low-rank chain; the active link stays beside it."""

    adapter: LowRankAdapter

    @torch.no_grad()
    def __init__(self, adapter: LowRankAdapter) -> None:
        super().__init__(adapter)
        view = self.view
        self.original = view.clone()
        links = adapter.dense_of(adapter.finished, torch.promote_types(view.dtype, torch.float32))
        view.copy_(links.add_(view))

    @torch.no_grad()
    def undo(self) -> None:
        self.view.copy_(self.original)

    def pristine(self) -> Tensor:
        conv = isinstance(self.adapter.layer.get_base_layer(), Conv1D)
        return (self.original.T if conv else self.original).clone(memory_format=torch.contiguous_format)


@dataclass
class Slot:
    """`columns` of `rows` are to be `base` + s `block` (all of `rows` where columns is None)."""

    rows: Tensor
    columns: Tensor | None
    base: Tensor
    block: Tensor


class WriteBack:
    """Writes the trained columns of many layers into their weights: one foreach sum for all that share a scale, and one
    foreach copy for all runs of columns. Columns that are no run are copied layer by layer: no one view has them.

    It keeps views of the tensors as they lie now; `fits` says whether they still lie there.
    """

    def __init__(self, folds: list[FoldedColumns]) -> None:
        self._places = [
            (
                fold,
                fold.adapter.b,
                fold.adapter.b.data_ptr(),
                fold.adapter.b.detach(),
                fold.weight,
                fold.weight.data_ptr(),
            )
            for fold in folds
        ]
        as_they_are: list[Slot] = []
        sums: dict[tuple[float, bool], list[Slot]] = defaultdict(list)
        for fold in folds:
            holds = fold.adapter.holds_weights
            if holds and fold.scale == 1.0:
                as_they_are += fold.slots()
            else:
                sums[fold.scale, holds] += fold.slots()
        self._values = [slot.block for slot in as_they_are]
        self._sums = [
            (scale, holds, [s.base for s in slots], [s.block for s in slots]) for (scale, holds), slots in sums.items()
        ]
        slots = as_they_are + [slot for found in sums.values() for slot in found]
        self._runs = [(i, slot.rows) for i, slot in enumerate(slots) if slot.columns is None]
        self._sampled = [(i, slot.rows, slot.columns) for i, slot in enumerate(slots) if slot.columns is not None]

    def fits(self) -> bool:
        """Whether every B and every weight is still the tensor it was."""
        return all(
            fold.up._parameters["weight"] is b and b.data_ptr() == at and weight.data_ptr() == there
            for fold, b, at, _, weight, there in self._places
        )

    @torch.no_grad()
    def run(self) -> None:
        """Write."""
        values = self._values
        for scale, holds, bases, blocks in self._sums:
            updates = torch._foreach_sub(blocks, bases) if holds else blocks
            values = values + list(torch._foreach_add(bases, updates, alpha=scale))
        if self._runs:
            torch._foreach_copy_([rows for _, rows in self._runs], [values[i] for i, _ in self._runs])
        for i, rows, columns in self._sampled:
            rows.index_copy_(1, columns, values[i].to(rows.dtype))
        for fold, b, at, held, *_ in self._places:
            fold.written = (b, b._version, at, held)
