"""Folding: the active columns s B of a column adapter, written into W itself, so that the layer is one GEMM.

W0's columns are kept aside bit for bit, and W is written afresh from them (rounded once, never accumulated) after
every optimizer step. Updates are noticed by torch's global optimizer-step hook, not by version counters, which
fused optimizers do not move; a counter that did move (a load, a hand-made step) is noticed at the next forward.

Nothing of this shows outside: `state_dict` holds the pristine W0, merging and unloading start from it, and a
disabled adapter computes with it without touching W (a graph that still waits for its backward keeps its weights).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers.pytorch_utils import Conv1D

from tunewise.methods.columns import ColumnAdapter, oriented
from tunewise.methods.gather import run_of
from tunewise.methods.layer_adapter import ADAPTERS, LayerAdapter, adapters_of

if TYPE_CHECKING:
    _LayerBehaviour = LoraLayer
else:  # a plain class: a live layer's class can only be changed to one of the same memory layout
    _LayerBehaviour = object


class Fold:
    """One column adapter's update, standing in its layer's weight."""

    @torch.no_grad()
    def __init__(self, adapter: ColumnAdapter) -> None:
        self.adapter = adapter
        self.weight: Tensor = adapter.layer.get_base_layer().weight
        view = oriented(adapter.layer.get_base_layer()).detach()
        self.scale = adapter.scale
        self.touched = torch.cat([columns for columns, _ in adapter.finished] + [adapter.columns]).unique()
        self.original = view.index_select(1, self.touched)
        self.base = adapter.base_columns(view)
        self.runs = [run_of(columns) for columns in adapter.split_columns(adapter.columns)]
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

    @torch.no_grad()
    def write(self) -> None:
        """W[:, cols] <- W0[:, cols] + finished links + s B, per part (PaCA: the trained columns as they are)."""
        adapter = self.adapter
        view = oriented(adapter.layer.get_base_layer()).detach()
        columns = adapter.split_columns(adapter.columns)
        blocks = adapter.parts_of(adapter.b.detach())
        for (start, stop), cols, run, base, b in zip(adapter.target.parts, columns, self.runs, self.base, blocks):
            if adapter.holds_weights and adapter.scale == 1.0:
                new = b
            elif adapter.holds_weights:
                new = base + adapter.scale * (b - base)
            else:
                new = torch.add(base, b, alpha=adapter.scale)
            if run is not None:
                view[start:stop, run[0] : run[1]].copy_(new)
            else:
                view[start:stop].index_copy_(1, cols, new.to(view.dtype))
        self._written = (adapter.b, adapter.b._version, adapter.b.data_ptr())

    @property
    def stale(self) -> bool:
        """Whether B has changed since `write`, or another tensor stands in its place (a functional call, `.data`
        assigned). What torch does not count can't be seen: a write into `.data`, a fused function called by hand;
        call `tunewise.refold(model)` after those."""
        b, version, where = self._written
        return b is not self.adapter.b or version != b._version or where != b.data_ptr()

    @torch.no_grad()
    def undo(self) -> None:
        """W is W0 again, bit for bit."""
        oriented(self.adapter.layer.get_base_layer()).detach().index_copy_(1, self.touched, self.original)

    def pristine(self) -> Tensor:
        """A copy of W0 in the layer's own orientation; W itself keeps the fold."""
        weight = self.weight.detach().clone()
        view = weight.T if isinstance(self.adapter.layer.get_base_layer(), Conv1D) else weight
        view.index_copy_(1, self.touched, self.original)
        return weight


class FoldingLayer(_LayerBehaviour):
    """What a PEFT LoRA layer does once an adapter of ours is on it: the same, over a weight that may be folded."""

    _fold: Fold | None = None

    def sync_fold(self) -> None:
        """Fold, refold or undo, as the active adapters want it."""
        wanted = foldable_adapter(self)
        fold = self._fold
        if fold is not None and (fold.adapter is not wanted or fold.scale != wanted.scale):
            self.undo_fold()
            fold = None
        if wanted is not None:
            if fold is None:
                object.__setattr__(self, "_fold", Fold(wanted))
            elif fold.stale:
                fold.write()

    def undo_fold(self) -> None:
        """W is W0 again; the next forward folds anew where that is wanted."""
        if self._fold is not None:
            self._fold.undo()
            object.__setattr__(self, "_fold", None)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        mixed = kwargs.get("adapter_names") is not None
        if not torch.compiler.is_compiling():
            if mixed:
                self.undo_fold()
            else:
                self.sync_fold()
        elif mixed and self._fold is not None:
            raise RuntimeError("adapter_names= in a compiled model needs column adapters attached with fold='never'")
        if self._fold is not None and self.disable_adapters:
            pristine = {"weight": self._fold.pristine()}
            return torch.func.functional_call(self.get_base_layer(), pristine, (x,))
        return super().forward(x, *args, **kwargs)  # type: ignore[misc]

    def get_delta_weight(self, adapter: str) -> Tensor:
        """dW as the layer stores its weight; for our adapters over all links (quantized layers merge by this)."""
        ours = adapters_of(self).get(adapter)
        if ours is None:
            return super().get_delta_weight(adapter)  # type: ignore[misc]
        delta = ours.delta()
        return delta.T if isinstance(self.get_base_layer(), Conv1D) else delta

    def merge(self, *args: Any, **kwargs: Any) -> None:
        self.undo_fold()
        super().merge(*args, **kwargs)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """PEFT calls this to take the layer away."""
        self.undo_fold()
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        return self.get_base_layer()

    def delete_adapter(self, adapter_name: str) -> None:
        self.undo_fold()
        gone = adapters_of(self).get(adapter_name)
        if gone is not None:
            ADAPTERS.discard(gone)
        super().delete_adapter(adapter_name)

    # A compiled forward does not look whether the fold is still the wanted one, so whatever changes that does.

    def set_adapter(self, *args: Any, **kwargs: Any) -> None:
        super().set_adapter(*args, **kwargs)
        self.sync_fold()

    def set_scale(self, *args: Any, **kwargs: Any) -> None:
        super().set_scale(*args, **kwargs)
        self.sync_fold()

    def scale_layer(self, *args: Any, **kwargs: Any) -> None:
        super().scale_layer(*args, **kwargs)
        self.sync_fold()

    def unscale_layer(self, *args: Any, **kwargs: Any) -> None:
        super().unscale_layer(*args, **kwargs)
        self.sync_fold()

    def update_layer(self, *args: Any, **kwargs: Any) -> None:
        """One more adapter: PEFT may start it from W, which must then be W0."""
        self.undo_fold()
        super().update_layer(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """The class is made at run time, so a pickle names the class that it was made from."""
        return _empty_folding_layer, (type(self).__mro__[2],), self.__dict__

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        folded = self._fold is not None
        self.undo_fold()  # a new device or dtype: folded afresh there, or not at all
        result = super()._apply(*args, **kwargs)  # type: ignore[misc]
        for adapter in adapters_of(self).values():
            if isinstance(adapter, ColumnAdapter):
                adapter.columns = adapter.columns.to(adapter.b.device)
                adapter.finished = [(c.to(adapter.b.device), b.to(adapter.b.device)) for c, b in adapter.finished]
                if adapter._origin is not None:
                    adapter._origin = adapter._origin.to(adapter.b.device, adapter.b.dtype)
                adapter.group.forget()
        if folded:
            self.sync_fold()
        return result


@functools.cache
def folding_class(kind: Any) -> Any:
    """A subclass of PEFT's layer class `kind` with the behaviour of `FoldingLayer`."""
    return type(f"Folding{kind.__name__}", (FoldingLayer, kind), {"__module__": __name__})


def _empty_folding_layer(kind: Any) -> Any:
    made = folding_class(kind)
    return made.__new__(made)


def make_folding(layer: Any) -> None:
    """Give the layer the behaviour of `FoldingLayer`; its parameters and names stay."""
    if not isinstance(layer, FoldingLayer):
        layer.__class__ = folding_class(type(layer))  # type: ignore[arg-type]
        layer.register_state_dict_post_hook(_save_pristine)
        layer.register_load_state_dict_pre_hook(_load_unfolded)


def unfold(layer: LoraLayer) -> None:
    """W is W0, bit for bit, until the next forward; nothing to do on a layer that is not folded."""
    if isinstance(layer, FoldingLayer):
        layer.undo_fold()


def foldable_adapter(layer: LoraLayer) -> ColumnAdapter | None:
    """The column adapter that should stand in the layer's weight now, if any."""
    adapters = [v for v in layer.lora_variant.values() if isinstance(v, ColumnAdapter)]
    if len(adapters) != 1 or layer.merged or adapters[0].name not in layer.active_adapters:
        return None
    return adapters[0] if can_fold(adapters[0]) else None


def can_fold(adapter: ColumnAdapter) -> bool:
    """Whether W can be written: a plain, untied, frozen fp32 or fp64 weight (lower precision only on demand: a small
    update would be rounded away), and no dropout on the adapter's input."""
    if adapter.fold_mode == "never":
        return False
    weight: Any = getattr(adapter.layer.get_base_layer(), "weight", None)
    if type(weight) not in (nn.Parameter, Tensor) or weight.is_meta or weight.requires_grad:
        return False
    if isinstance(adapter.layer.lora_dropout[adapter.name], nn.Dropout):
        return False
    if weight.dtype in (torch.float32, torch.float64):
        return True
    return adapter.fold_mode == "always" and weight.dtype in (torch.bfloat16, torch.float16)


def refold(model: nn.Module) -> None:
    """Write the present values of all folded columns into their weights.

    Needed only after an update that neither an optimizer made nor torch counts (a write into `.data`), and in a
    compiled model after any update that no optimizer made.
    """
    _write([a for m in model.modules() if isinstance(m, LoraLayer) for a in adapters_of(m).values()])


def _write(adapters: Iterable[LayerAdapter]) -> None:
    for adapter in adapters:
        fold = getattr(adapter.layer, "_fold", None)
        if fold is not None and fold.adapter is adapter:
            fold.write()


def _after_optimizer_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    _write([a for a in ADAPTERS if isinstance(a, ColumnAdapter) and id(a.b) in stepped])


register_optimizer_step_post_hook(_after_optimizer_step)


def _save_pristine(layer: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    key = prefix + "base_layer.weight"
    if layer._fold is not None and key in state:
        state[key] = layer._fold.pristine()


def _load_unfolded(layer: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if any(key.startswith(prefix) for key in state):
        layer.undo_fold()
