"""Folding: the active columns s B of a column adapter, written into W itself, so that the layer is one GEMM.

W0's columns are kept aside bit for bit, and W is written afresh from them (rounded once, never accumulated) after
every optimizer step. Updates are noticed by torch's global optimizer-step hook, not by version counters, which
fused optimizers do not move; a counter that did move (a load, a hand-made step) is noticed at the next forward.

Nothing of this shows outside: `state_dict` holds the pristine W0, merging and unloading start from it, and a
disabled adapter computes with it without touching W (a graph that still waits for its backward keeps its weights).
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers.pytorch_utils import Conv1D

from tunewise.errors import SpecError
from tunewise.methods.columns import ColumnAdapter
from tunewise.methods.folded import Folded, FoldedColumns, FoldedLinks, WriteBack
from tunewise.methods.layer_adapter import ADAPTERS, LayerAdapter, adapters_of
from tunewise.methods.lean import is_transformed, lean_beside, lean_output
from tunewise.methods.low_rank import LowRankAdapter

if TYPE_CHECKING:
    _LayerBehaviour = LoraLayer
else:  # a plain class: a live layer's class can only be changed to one of the same memory layout
    _LayerBehaviour = object


class FoldingLayer(_LayerBehaviour):
    """What a PEFT LoRA layer does once an adapter of ours is on it: the same, over a weight that may be folded."""

    _fold: Folded | None = None
    _before_merge: Tensor | None = None
    """W0 while adapters are merged: what PEFT adds and subtracts again differs from it in the last bits."""
    lean: bool = True
    """Whether the forward may be one autograd node of ours; without it, it is made of operations that have a second
    derivative."""

    def sync_fold(self) -> None:
        """Fold, refold or undo, as the active adapters want it."""
        wanted = foldable_adapter(self)
        fold = self._fold
        if fold is not None and (fold.adapter is not wanted or fold.scale != wanted.scale):
            self.undo_fold()
            fold = None
        if wanted is not None:
            if fold is None:
                made = FoldedColumns(wanted) if isinstance(wanted, ColumnAdapter) else FoldedLinks(wanted)
                object.__setattr__(self, "_fold", made)
                _PLANS.clear()
            elif isinstance(fold, FoldedColumns) and fold.is_stale():
                fold.write()

    def undo_fold(self) -> None:
        """W is W0 again; the next forward folds anew where that is wanted."""
        if self._fold is not None:
            self._fold.undo()
            object.__setattr__(self, "_fold", None)
            _PLANS.clear()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not (args or kwargs) and not torch.compiler.is_compiling():
            found = lean_output(self, x)
            if found is None and self._fold is None and self.lean and not is_transformed():
                self.sync_fold()
                found = lean_output(self, x) if self._fold is not None else lean_beside(self, x)
            if found is not None:
                return found
        mixed = kwargs.get("adapter_names") is not None
        if not torch.compiler.is_compiling():
            if mixed:
                self.undo_fold()
            elif is_transformed() or (self._fold is not None and self.get_base_layer().weight is not self._fold.weight):
                return self._apart(x, *args, **kwargs)
            else:
                self.sync_fold()
        elif mixed and self._fold is not None:
            raise RuntimeError("adapter_names= in a compiled model needs column adapters attached with fold='never'")
        if self._fold is not None and self.disable_adapters:
            pristine = {"weight": self._fold.pristine()}
            return torch.func.functional_call(self.get_base_layer(), pristine, (x,))
        return super().forward(x, *args, **kwargs)  # type: ignore[misc]

    def _apart(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One call beside W0, for factors or a weight that are there for this call alone."""
        fold = self._fold
        own: dict[str, Any] = self.get_base_layer()._parameters
        if fold is None:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        weight = own.get("weight")
        if weight is None or (weight is not fold.weight and is_transformed()):
            what = "no parameter any more" if weight is None else "transformed"
            raise RuntimeError(f"layer {fold.adapter.target.name}: its weight is {what}; attach with fold='never'")
        pristine = fold.pristine() if weight is fold.weight else fold.pristine_of(weight)
        object.__setattr__(self, "_fold", None)
        own["weight"] = pristine
        try:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        finally:
            own["weight"] = weight
            object.__setattr__(self, "_fold", fold)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """dW as the layer stores its weight; for our adapters over all links (quantized layers merge by this)."""
        ours = adapters_of(self).get(adapter)
        if ours is None:
            return super().get_delta_weight(adapter)  # type: ignore[misc]
        delta = ours.delta()
        return delta.T if isinstance(self.get_base_layer(), Conv1D) else delta

    def merge(self, *args: Any, **kwargs: Any) -> None:
        self.undo_fold()
        weight: Any = getattr(self.get_base_layer(), "weight", None)
        if not self.merged and is_plain_float(weight):
            object.__setattr__(self, "_before_merge", weight.detach().clone())
        try:
            super().merge(*args, **kwargs)
        finally:
            if not self.merged:  # refused, or nothing to merge
                self._restore()
                self.sync_fold()

    def unmerge(self) -> None:
        super().unmerge()
        self._restore()
        if not self.disable_adapters:  # PEFT unmerges in the midst of a forward that is to be W0's
            self.sync_fold()

    def _restore(self) -> None:
        """W is what it was before anything was merged, bit for bit."""
        if self._before_merge is not None:
            weight: Any = self.get_base_layer().weight
            weight.data.copy_(self._before_merge)
            object.__setattr__(self, "_before_merge", None)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """PEFT calls this to take the layer away."""
        self.undo_fold()
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            object.__setattr__(self, "_before_merge", None)  # it will not be unmerged
        return self.get_base_layer()

    def delete_adapter(self, adapter_name: str) -> None:
        self.undo_fold()
        gone = adapters_of(self).get(adapter_name)
        if gone is not None:
            ADAPTERS.discard(gone)
        super().delete_adapter(adapter_name)
        self.sync_fold()

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
        if self._before_merge is not None:
            weight: Any = self.get_base_layer().weight
            object.__setattr__(self, "_before_merge", self._before_merge.to(weight))
        for adapter in adapters_of(self).values():
            if isinstance(adapter, ColumnAdapter):
                adapter.columns = adapter.columns.to(adapter.b.device)
                adapter.finished = [(c.to(adapter.b.device), b.to(adapter.b.device)) for c, b in adapter.finished]
                if adapter._origin is not None:
                    adapter._origin = adapter._origin.to(adapter.b.device, adapter.b.dtype)
                adapter.group.forget()
            elif isinstance(adapter, LowRankAdapter):
                adapter.finished = [(a.to(adapter.b.device), b.to(adapter.b.device)) for a, b in adapter.finished]
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
        layer.register_load_state_dict_post_hook(_fold_again)


def unfold(layer: LoraLayer) -> None:
    """W is W0, bit for bit, until the next forward; nothing to do on a layer that is not folded."""
    if isinstance(layer, FoldingLayer):
        layer.undo_fold()


def foldable_adapter(layer: LoraLayer) -> ColumnAdapter | LowRankAdapter | None:
    """The adapter that should stand in the layer's weight now, if any: the one column adapter, else the one low-rank
    chain that has finished links."""
    ours = [v for v in layer.lora_variant.values() if isinstance(v, ColumnAdapter | LowRankAdapter)]
    columns = [v for v in ours if isinstance(v, ColumnAdapter)]
    candidates: list[Any] = columns or [v for v in ours if v.finished]
    if len(candidates) != 1 or layer.merged or candidates[0].name not in layer.active_adapters:
        return None
    return candidates[0] if can_fold(candidates[0]) else None


def is_plain_float(weight: Any) -> bool:
    """Whether a weight can be added to and put back: floating-point numbers, not quantized."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        return False
    return type(weight.data) is Tensor


def can_fold(adapter: ColumnAdapter | LowRankAdapter) -> bool:
    """Whether W can be written: a plain, untied, frozen fp32 or fp64 weight (lower precision only on demand: a small
    update would be rounded away), and no dropout on the adapter's input."""
    if adapter.fold_mode == "never" or adapter.b.is_meta:
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
    ours = [a for m in model.modules() if isinstance(m, LoraLayer) for a in adapters_of(m).values()]
    WriteBack(_folds(ours)).run()


def differentiable_twice(model: nn.Module) -> None:
    """Make every adapted layer compute by operations that have a second derivative, from now on."""
    for module in model.modules():
        if isinstance(module, FoldingLayer):
            module.lean = False
            for adapter in adapters_of(module).values():
                if isinstance(adapter, ColumnAdapter):
                    adapter.release()
                    adapter.fold_mode = "never"


def _folds(adapters: Iterable[LayerAdapter]) -> list[FoldedColumns]:
    found = []
    for adapter in adapters:
        fold = getattr(adapter.layer, "_fold", None)
        if isinstance(fold, FoldedColumns) and fold.adapter is adapter:
            if isinstance(adapter.b, DTensor):
                raise SpecError("columns can't be folded into weights that FSDP2 shards; use attach(..., fold='never')")
            found.append(fold)
    return found


_PLANS: weakref.WeakKeyDictionary[torch.optim.Optimizer, tuple[list[Tensor], WriteBack]] = weakref.WeakKeyDictionary()
"""For each optimizer what its steps move in weights; forgotten when any layer is folded or unfolded."""


def _after_optimizer_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    moved = [p for group in optimizer.param_groups for p in group["params"]]
    found = _PLANS.get(optimizer)
    if found is None or len(found[0]) != len(moved) or not all(map(is_, found[0], moved)) or not found[1].fits():
        stepped = set(map(id, moved))
        folds = _folds([a for a in ADAPTERS if isinstance(a, ColumnAdapter) and id(a.b) in stepped])
        found = _PLANS[optimizer] = (moved, WriteBack(folds))
    found[1].run()


register_optimizer_step_post_hook(_after_optimizer_step)


def _save_pristine(layer: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    key = prefix + "base_layer.weight"
    if layer._fold is not None and key in state:
        state[key] = layer._fold.pristine()


def _load_unfolded(layer: Any, state: dict[str, Any], prefix: str, metadata: Any, *_: Any) -> None:
    if any(key.startswith(prefix) for key in state):
        layer.undo_fold()
        key = prefix + "base_layer.weight"
        if key in state and metadata.get("assign_to_params_buffers"):
            state[key] = state[key].clone()  # to be written into, and the caller's own is not ours


def _fold_again(layer: Any, _: Any) -> None:
    """Not at the next forward: what is copied into the weights until then would be taken for W0."""
    layer.sync_fold()
