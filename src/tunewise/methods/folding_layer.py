"""PEFT's LoRA layer with adapters of tunewise on it: the same behaviour, over a weight that may hold an update.

Nothing of a fold shows outside: `state_dict` holds W0, merging and unloading start from it, and a disabled adapter
computes with it without touching W (a graph that still waits for its backward keeps its weights).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from tunewise.methods.adapters.base import LIVE_ADAPTERS, Adapter, adapters_of
from tunewise.methods.adapters.fold import Fold
from tunewise.methods.adapters.fusing import is_transformed, sole_active_adapter
from tunewise.methods.fold_updates import forget_plans
from tunewise.methods.tied import untie

if TYPE_CHECKING:
    _LayerBehaviour = LoraLayer
else:  # a plain class: a live layer's class can only be changed to one of the same memory layout
    _LayerBehaviour = object


class FoldingLayer(_LayerBehaviour):
    """Mixed into the class of a PEFT LoRA layer by `make_folding`."""

    _fold: Fold | None = None
    _before_merge: Tensor | None = None
    """W0 while adapters are merged: what PEFT adds and subtracts again differs from it in the last bits."""
    is_tied: bool = False
    """Whether another module shares the weight."""
    model_config: PretrainedConfig | None = None
    may_fuse: bool = True
    """Whether the forward may be one autograd node; otherwise its operations all have a second derivative."""

    def sync_fold(self) -> None:
        """Fold, fold again or undo, as the active adapters need it."""
        wanted = foldable_adapter(self)
        fold = self._fold
        if fold is not None and (wanted is None or fold.name != wanted.name or fold.scale != wanted.scale):
            self.undo_fold()
            fold = None
        if wanted is not None:
            if fold is None:
                object.__setattr__(self, "_fold", wanted.make_fold())
                forget_plans()
            elif fold.is_stale():
                fold.write()

    def undo_fold(self) -> None:
        """Make W equal to W0 until the next forward."""
        if self._fold is not None:
            self._fold.undo()
            object.__setattr__(self, "_fold", None)
            forget_plans()

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if not (args or kwargs) and not torch.compiler.is_compiling():
            fold = self._fold
            output = self._fused_unfolded(x) if fold is None else fold.fused_forward(x)
            if output is not None:
                return output
        mixed = kwargs.get("adapter_names") is not None
        if not torch.compiler.is_compiling():
            if mixed:
                self.undo_fold()
            elif is_transformed() or (self._fold is not None and self.get_base_layer().weight is not self._fold.weight):
                return self._forward_beside(x, *args, **kwargs)
            else:
                self.sync_fold()
        elif mixed and self._fold is not None:
            raise RuntimeError("adapter_names= in a compiled model needs column adapters attached with fold='never'")
        if self._fold is not None and self.disable_adapters:
            pristine = {"weight": self._fold.pristine()}
            return torch.func.functional_call(self.get_base_layer(), pristine, (x,))
        return super().forward(x, *args, **kwargs)  # type: ignore[misc]

    def _fused_unfolded(self, x: Tensor) -> Tensor | None:
        name = sole_active_adapter(self)
        adapter = None if name is None else adapters_of(self).get(name)
        return None if adapter is None else adapter.fused_forward(x)

    def _forward_beside(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """One call with the update beside W0, for factors or a weight that exist for this call alone."""
        fold = self._fold
        own: dict[str, Any] = self.get_base_layer()._parameters
        if fold is None:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        weight = own.get("weight")
        if weight is None or (weight is not fold.weight and is_transformed()):
            what = "no parameter any more" if weight is None else "transformed"
            raise RuntimeError(f"layer {fold.layer_name}: its weight is {what}; attach with fold='never'")
        pristine = fold.pristine() if weight is fold.weight else fold.pristine_of(weight)
        object.__setattr__(self, "_fold", None)
        own["weight"] = pristine
        try:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        finally:
            own["weight"] = weight
            object.__setattr__(self, "_fold", fold)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """dW as the layer stores its weight, over all links (quantized layers merge by this)."""
        ours = adapters_of(self).get(adapter)
        if ours is None or ours.is_plain_lora:
            return super().get_delta_weight(adapter)  # type: ignore[misc]
        delta = ours.delta()
        return delta.T if isinstance(self.get_base_layer(), Conv1D) else delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        self.undo_fold()
        if self.is_tied and not self.merged:
            untie(self, self.model_config)
            self.is_tied = False
        weight = getattr(self.get_base_layer(), "weight", None)
        if not self.merged and isinstance(weight, Tensor) and _is_plain_float(weight):
            object.__setattr__(self, "_before_merge", weight.detach().clone())
        try:
            super().merge(safe_merge, adapter_names)
        finally:
            if not self.merged:  # refused, or nothing to merge
                self._restore()
                self.sync_fold()

    def unmerge(self) -> None:
        super().unmerge()
        self._restore()
        if not self.disable_adapters:  # PEFT unmerges within a forward that must compute with W0
            self.sync_fold()

    def _restore(self) -> None:
        """Make W equal to what it was before anything was merged, bit for bit."""
        if self._before_merge is not None:
            weight: Any = self.get_base_layer().weight
            weight.data.copy_(self._before_merge)
            object.__setattr__(self, "_before_merge", None)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """PEFT calls this to remove the layer."""
        self.undo_fold()
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            object.__setattr__(self, "_before_merge", None)  # it will not be unmerged
        return self.get_base_layer()

    def delete_adapter(self, adapter_name: str) -> None:
        self.undo_fold()
        gone = adapters_of(self).pop(adapter_name, None)
        if gone is not None:
            LIVE_ADAPTERS.discard(gone)
        super().delete_adapter(adapter_name)
        self.sync_fold()

    # A compiled forward does not check whether the fold is still right, so whatever changes that does.

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        super().set_adapter(adapter_names, inference_mode)
        self.sync_fold()

    def set_scale(self, adapter: str, scale: float) -> None:
        super().set_scale(adapter, scale)
        self.sync_fold()

    def scale_layer(self, scale: float) -> None:
        super().scale_layer(scale)
        self.sync_fold()

    def unscale_layer(self, scale: float | None = None) -> None:
        super().unscale_layer(scale)
        self.sync_fold()

    def update_layer(self, *args: Any, **kwargs: Any) -> None:
        """One more adapter: PEFT may start it from W, which must be W0 then."""
        self.undo_fold()
        super().update_layer(*args, **kwargs)

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        """The class is created at run time, so a pickle names PEFT's class."""
        return _empty_folding_layer, (type(self).__mro__[2],), self.__dict__

    def _apply(self, *args: object, **kwargs: object) -> Any:
        folded = self._fold is not None
        self.undo_fold()  # on a new device or dtype: folded afresh, or not at all
        result = super()._apply(*args, **kwargs)  # type: ignore[misc]
        if self._before_merge is not None:
            weight: Any = self.get_base_layer().weight
            object.__setattr__(self, "_before_merge", self._before_merge.to(weight))
        for adapter in adapters_of(self).values():
            adapter.follow_device()
        if folded:
            self.sync_fold()
        return result


@functools.cache
def _folding_class(kind: type) -> type:
    return type(f"Folding{kind.__name__}", (FoldingLayer, kind), {"__module__": __name__})


def _empty_folding_layer(kind: type) -> object:
    folding = _folding_class(kind)
    return object.__new__(folding)


def make_folding(layer: Any) -> None:
    """Give the layer the behaviour of `FoldingLayer`; its parameters and names stay."""
    if not isinstance(layer, FoldingLayer):
        layer.__class__ = _folding_class(type(layer))  # type: ignore[arg-type]
        layer.tunewise_adapters = {}
        layer.register_state_dict_post_hook(_write_saved_form)
        layer.register_load_state_dict_pre_hook(_read_saved_form)
        layer.register_load_state_dict_post_hook(_fold_again)


def differentiable_twice(model: nn.Module) -> None:
    """Let every adapted layer compute with operations that have a second derivative, from now on."""
    for module in model.modules():
        if isinstance(module, FoldingLayer):
            module.may_fuse = False
            for adapter in adapters_of(module).values():
                if adapter.folds_active_link:
                    adapter.unfold()
                    adapter.fold_mode = "never"


def unfolded_weight(layer: nn.Module) -> Any:
    """W0 of a linear layer that may carry adapters; None where it is not available (merged by PEFT alone)."""
    if isinstance(layer, FoldingLayer) and layer._fold is not None:
        return layer._fold.pristine()
    if isinstance(layer, LoraLayer):
        return getattr(layer, "_before_merge", None) if layer.merged else layer.get_base_layer().weight
    return layer.weight


def foldable_adapter(layer: FoldingLayer) -> Adapter | None:
    """The adapter to write into W: the only one that folds its active link, else the only one with finished links."""
    candidates = [adapter for adapter in adapters_of(layer).values() if adapter.can_fold]
    candidates = [adapter for adapter in candidates if adapter.folds_active_link] or candidates
    if len(candidates) != 1 or layer.merged or candidates[0].name not in layer.active_adapters:
        return None
    return candidates[0] if _can_be_written(candidates[0]) else None


def _can_be_written(adapter: Adapter) -> bool:
    """Whether W is a plain frozen weight that loses nothing of a small update, and the adapter has no dropout."""
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


def _is_plain_float(weight: Tensor) -> bool:
    """Whether a weight can be added to and restored: floating-point numbers, and not quantized."""
    return weight.is_floating_point() and type(weight.data) is Tensor


# --- state_dict: W0 and stock factors ----------------------------------------------------------------------------


def _variants(layer: Any, prefix: str) -> list[tuple[Adapter, str, str]]:
    """(adapter, key of A, key of B) of every adapter that differs from its saved form."""
    return [
        (adapter, f"{prefix}lora_A.{name}.weight", f"{prefix}lora_B.{name}.weight")
        for name, adapter in adapters_of(layer).items()
        if not adapter.is_plain_lora
    ]


def _write_saved_form(layer: Any, state: dict[str, Tensor], prefix: str, metadata: dict[str, object]) -> None:
    key = prefix + "base_layer.weight"
    if layer._fold is not None and key in state:
        state[key] = layer._fold.pristine()
    for adapter, key_a, key_b in _variants(layer, prefix):
        if key_a in state and key_b in state:
            a, b = adapter.saved_factors()
            state[key_a], state[key_b] = a.detach().contiguous(), b.detach().contiguous()


def _read_saved_form(
    layer: Any, state: dict[str, Tensor], prefix: str, metadata: dict[str, object], *_: object
) -> None:
    weight_key = prefix + "base_layer.weight"
    for adapter, key_a, key_b in _variants(layer, prefix):
        if key_b in state:
            _read_factors(adapter, state, weight_key, key_a, key_b)
        elif weight_key in state:
            adapter.rebase(state[weight_key])
    if any(key.startswith(prefix) for key in state):
        layer.undo_fold()
        if weight_key in state and metadata.get("assign_to_params_buffers"):
            state[weight_key] = state[weight_key].clone()  # a fold writes into it, and it is the caller's


def _read_factors(adapter: Adapter, state: dict[str, Tensor], weight_key: str, key_a: str, key_b: str) -> None:
    adapter.incoming_weight = state.get(weight_key)
    try:
        # A state of the trained tensors alone has no A: the present one stays.
        a = state[key_a] if key_a in state else adapter.saved_factors()[0]
        adapter.take_saved(a.to(adapter.b.device), state[key_b].to(adapter.b.device))
    finally:
        adapter.incoming_weight = None
    # torch copies these afterwards: the active link, already in place.
    state[key_b] = adapter.b.detach().clone()
    if key_a in state:
        state[key_a] = adapter.a.detach().clone()


def _fold_again(layer: Any, _: Any) -> None:
    """Not at the next forward: what is copied into the weights until then would be taken for W0."""
    layer.sync_fold()
