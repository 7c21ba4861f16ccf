"""One adapter on one layer, as behaviour put onto PEFT's `LoraLayer` by its `LoraVariant` hook.

`LayerAdapter` is what column methods, row methods, chains and adapters on slices of fused projections share:
links, and the two forms an adapter has. In memory only the active link's factors are parameters (`lora_A`, `lora_B`
of the layer), so gradients and optimizer state do not grow with the number of links. On disk, and in every
`state_dict`, it is a stock LoRA: the links' factors side by side, so that any LoRA reader gives the same outputs.

Shapes: W is n x m (out x in) in formulae, whichever way the layer stores it; `parts` are the adapted runs of
output rows, P of them (1, unless only q and v of a fused projection are asked for). With rank r:
lora_A.weight is (P r, m), lora_B.weight is (sum of the parts' rows, r), one block below the other.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn

from tunewise.catalog import Method
from tunewise.errors import StoreError
from tunewise.models.layers import Target

ADAPTERS: weakref.WeakSet[LayerAdapter] = weakref.WeakSet()
"""Every live adapter: the optimizer-step hook finds those whose factor an optimizer has just moved."""


class LayerAdapter(LoraVariant, ABC):
    """Links, saved form and merging, for one adapter on one layer. Subclasses say where dW lives."""

    def __init__(
        self,
        layer: Any,
        name: str,
        *,
        target: Target,
        method: Method,
        rank: int,
        scale: float,
        seed: int,
        config: Any,
    ) -> None:
        self.layer = layer
        self.name = name
        self.target = target
        self.method = method
        self.rank = rank
        self.nominal_scale = scale
        self.seed = seed
        self.config = config
        self.finished: list[tuple[Tensor, Tensor]] = []
        """(where, B) of the links before the active one; what `where` is, the subclass says."""
        self.incoming_weight: Tensor | None = None
        ADAPTERS.add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        ADAPTERS.add(self)  # a deep copy of a model trains like the model

    # --- factors ---------------------------------------------------------------------------------------------

    @property
    def link(self) -> int:
        """Number of the active link, from 0."""
        return len(self.finished)

    @property
    def scale(self) -> float:
        """s in dW = s B A, as PEFT's `set_scale` left it."""
        return self.layer.scaling[self.name]

    @property
    def a(self) -> nn.Parameter:
        return self.layer._modules["lora_A"]._modules[self.name].weight

    @property
    def b(self) -> nn.Parameter:
        return self.layer._modules["lora_B"]._modules[self.name].weight

    @property
    def trained(self) -> list[nn.Parameter]:
        """The active link's trained tensors."""
        return [p for p in (self.a, self.b) if p.requires_grad]

    @property
    def is_stock(self) -> bool:
        """Whether the tensors in memory are the plain LoRA factors of the whole update."""
        return not self.finished and not self.target.fused

    def parts_of(self, b: Tensor) -> list[Tensor]:
        """The blocks of a stacked B, one per part: (rows of the part, r) each."""
        return list(b.split([stop - start for start, stop in self.target.parts]))

    @abstractmethod
    def draw(self) -> None:
        """Set the active link's factors to their start: its own row space, and B = 0 (dW = 0)."""

    @abstractmethod
    def link_factors(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(A (P r, m), stacked B) of every link, the active one last; fp32 or the factors' own dtype."""

    @abstractmethod
    def take_link(self, a: Tensor, b: Tensor, *, active: bool) -> None:
        """Take one link's factors from a saved adapter: as the active one, or behind it as finished."""

    @abstractmethod
    def finish_link(self) -> None:
        """Move the active link's update among the finished ones."""

    def release(self) -> None:
        """Before factors change by other hands than an optimizer's: leave the base weight as it was."""

    def engage(self) -> None:
        """After that: take up the place in the base weight again."""

    @torch.no_grad()
    def rebase(self, weight: Tensor) -> None:
        """Before a state_dict puts `weight` in W0's place without factors of its own."""

    @torch.no_grad()
    def restart(self) -> None:
        """Begin the next link: what was learnt stays in the function, the new factors start at dW = 0."""
        self.release()
        self.finish_link()
        self.draw()
        self.describe()
        self.engage()

    @torch.no_grad()
    def delta(self) -> Tensor:
        """dW over all links, fp32 (n, m)."""
        return self.dense_of(self.link_factors())

    @torch.no_grad()
    def dense_of(self, factors: Iterable[tuple[Tensor, Tensor]], dtype: torch.dtype = torch.float32) -> Tensor:
        """sum s B A over pairs (A (P r, m), stacked B), computed in `dtype`: (n, m)."""
        dense = torch.zeros(self.target.out_features, self.target.in_features, dtype=dtype, device=self.b.device)
        for a, b in factors:
            for (start, stop), a_part, b_part in zip(
                self.target.parts, a.split(self.rank), self.parts_of(b), strict=True
            ):
                dense[start:stop] += self.scale * (b_part.to(dtype) @ a_part.to(dtype))
        return dense

    # --- the saved form --------------------------------------------------------------------------------------

    def saved_factors(self) -> tuple[Tensor, Tensor]:
        """Stock LoRA factors over all links: A (k P r, m) and B (n, k P r), so that dW = scale B A."""
        factors = list(self.link_factors())
        a_all = torch.cat([a for a, _ in factors])
        if len(factors) == 1 and not self.target.fused:
            return a_all, factors[0][1]
        b_all = a_all.new_zeros(self.target.out_features, len(a_all), dtype=factors[0][1].dtype)
        for i, (_, b) in enumerate(factors):
            for p, ((start, stop), block) in enumerate(zip(self.target.parts, self.parts_of(b), strict=True)):
                column = (i * len(self.target.parts) + p) * self.rank
                b_all[start:stop, column : column + self.rank] = block
        return a_all, b_all

    @torch.no_grad()
    def take_saved(self, a_all: Tensor, b_all: Tensor) -> None:
        """The inverse of `saved_factors`: split a stock LoRA into links. Raises `StoreError` where it can't be."""
        width = self.rank * len(self.target.parts)
        links, rest = divmod(a_all.shape[0], width)
        expected = (self.target.out_features, a_all.shape[0])
        if rest or links < 1 or a_all.shape[1] != self.target.in_features or tuple(b_all.shape) != expected:
            raise StoreError(
                f"layer {self.target.name}: saved factors {tuple(a_all.shape)} and {tuple(b_all.shape)} do not fit "
                f"rank {self.rank} on a {self.target.out_features} x {self.target.in_features} weight; attach with "
                "the rank that the adapter was trained with"
            )
        self.release()
        self.finished = []
        for i in range(links):
            blocks = []
            for p, (start, stop) in enumerate(self.target.parts):
                column = i * width + p * self.rank
                blocks.append(b_all[start:stop, column : column + self.rank])
            a = a_all[i * width : (i + 1) * width]
            self.take_link(a, torch.cat(blocks), active=i == links - 1)
        self.describe()
        self.engage()

    def describe(self) -> None:
        """Keep PEFT's config telling the truth of the saved form: rank k P r, alpha = scale x that rank."""
        rank = (self.link + 1) * len(self.target.parts) * self.rank
        alpha = self.nominal_scale * rank / (rank**0.5 if self.config.use_rslora else 1.0)
        alpha = int(alpha) if alpha == int(alpha) else alpha  # an int where it is one: what PEFT's files hold
        self.layer.r[self.name] = rank
        self.layer.lora_alpha[self.name] = alpha
        self.layer.scaling[self.name] = self.nominal_scale
        if self.target.fused:
            self.config.rank_pattern[self.target.name] = rank
            self.config.alpha_pattern[self.target.name] = alpha
        else:
            self.config.r, self.config.lora_alpha = rank, alpha

    # --- what PEFT calls -------------------------------------------------------------------------------------

    # What is merged is taken back by the layer, from its copy of W0: exact to the bit, which a difference is not.

    def merge_unsafe(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:  # type: ignore[override]
        orig_weight.data.copy_(self._with_delta(orig_weight))

    def merge_safe(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:  # type: ignore[override]
        return self._with_delta(orig_weight)

    def unmerge(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:  # type: ignore[override]
        if self.layer._before_merge is None:
            raise RuntimeError(f"layer {self.target.name}: no copy of the weight from before the merge is left")
        return orig_weight.data

    def _with_delta(self, weight: Tensor) -> Tensor:
        delta = self.delta()
        delta = delta if weight.shape == delta.shape and not self.layer.fan_in_fan_out else delta.T
        wide = torch.promote_types(weight.dtype, torch.float32)
        return (weight.detach().to(wide) + delta.to(wide)).to(weight.dtype)


def keep_saved_form(layer: Any) -> None:
    """Make the layer's `state_dict` and `load_state_dict` speak the saved form of its adapters."""
    if getattr(layer, "_tunewise_hooks", False):
        return
    layer._tunewise_hooks = True
    layer.register_state_dict_post_hook(_write_saved_form)
    layer.register_load_state_dict_pre_hook(_read_saved_form)


def adapters_of(layer: LoraLayer) -> dict[str, LayerAdapter]:
    """The layer's adapters that are ours, by name."""
    return {name: v for name, v in layer.lora_variant.items() if isinstance(v, LayerAdapter)}


def _write_saved_form(layer: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name, adapter in adapters_of(layer).items():
        keys = _keys(prefix, name)
        if all(key in state for key in keys):
            for key, tensor in zip(keys, adapter.saved_factors(), strict=True):
                state[key] = tensor.detach().contiguous()


def _read_saved_form(layer: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, adapter in adapters_of(layer).items():
        key_a, key_b = _keys(prefix, name)
        if key_b not in state:
            if prefix + "base_layer.weight" in state:
                adapter.rebase(state[prefix + "base_layer.weight"])
            continue
        adapter.incoming_weight = state.get(prefix + "base_layer.weight")
        try:
            # A state of the trained tensors alone has no A: it is the one in place.
            a = state[key_a] if key_a in state else adapter.saved_factors()[0]
            adapter.take_saved(a.to(adapter.b.device), state[key_b].to(adapter.b.device))
        finally:
            adapter.incoming_weight = None
        # What torch copies afterwards is the active link, already in place.
        state[key_b] = adapter.b.detach().clone()
        if key_a in state:
            state[key_a] = adapter.a.detach().clone()


def _keys(prefix: str, name: str) -> tuple[str, str]:
    return f"{prefix}lora_A.{name}.weight", f"{prefix}lora_B.{name}.weight"
