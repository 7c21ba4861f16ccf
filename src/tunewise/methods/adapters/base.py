r"""The base class of adapters: all mathematics of a method on one layer.

In memory only the active link's factors are parameters, so gradients and optimizer state do not grow with the number of
links. On disk, and in every `state_dict`, an adapter is a stock LoRA: the links' factors side by side.

Shapes: W is n x m (out x in) in formulas. `target.parts` are the adapted rows of the output, P of them (1, unless only
q and v of a fused projection are adapted). lora_A.weight is (P r, m); lora_B.weight has the parts' blocks stacked.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn

from tunewise.catalog import Method
from tunewise.errors import ModelError, SpecError, StoreError
from tunewise.methods.adapters.fold import Fold
from tunewise.methods.adapters.products import add_to_parts, widen
from tunewise.methods.attachment import Attachment
from tunewise.methods.draws import stream
from tunewise.models.layers import Target

LIVE_ADAPTERS: weakref.WeakSet[Adapter] = weakref.WeakSet()
"""Every adapter in memory: the optimizer-step hook finds those with a B that the optimizer has updated."""


class Adapter(LoraVariant, ABC):
    """One method on one layer: dW = sum over links of s B A.

    A subclass defines `draw_part`, `place` and `identify`; that is a complete method. It overrides `factors` where B A
    is not the product of the two trained tensors, and `forward` or `fused_forward` for speed.

    Attributes:
        layer: PEFT's LoRA layer.
        name: PEFT's name of the adapter.
        target: the adapted layer's name, sizes and parts.
        method: the catalog row.
        rank: r of one link.
        finished: (where, B) of each link before the active one; `where` is what `place` takes.

    Example:
        >>> import torch, tunewise
        >>> from tunewise.registry import ADAPTERS
        >>> class Signs(Adapter):  # A is random signs, B is trained
        ...     def draw_part(self, part):
        ...         return torch.randn(self.rank, 8, generator=self.generator(part)).sign()
        ...     def place(self, where):
        ...         self.a.copy_(where)
        ...         self.b.zero_()
        ...     def identify(self, a, b):
        ...         return a
        >>> _ = ADAPTERS.register("signs", Signs)
        >>> row = tunewise.Method("B", "random", adapter="signs", name="signs")
        >>> model = tunewise.attach(torch.nn.Sequential(torch.nn.Linear(8, 4)), row, rank=2, targets=["0"])
        >>> tunewise.delta(model)["0"].shape
        torch.Size([4, 8])
        >>> ADAPTERS.unregister("signs")
    """

    folds_active_link: ClassVar[bool] = False
    """Whether the active link may be written into W too, and not only the finished ones."""
    is_plain_lora = False
    """Whether PEFT's own LoRA forward, merge and state_dict are right for this adapter as it is."""

    def __init__(self, layer: Any, target: Target, done: Attachment, config: Any, fold: str = "auto") -> None:
        self.layer = layer
        self.name = done.adapter_name
        self.target = target
        self.method: Method = done.method
        self.rank = done.rank
        self.seed = done.seed
        self.nominal_scale = done.scale
        self.config = config
        self.fold_mode = fold
        self.finished: list[tuple[Tensor, Tensor]] = []
        self.incoming_weight: Tensor | None = None
        """W0-to-be while a whole state_dict is loaded."""
        LIVE_ADAPTERS.add(self)

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        LIVE_ADAPTERS.add(self)  # a deep copy of a model trains like the model

    # --- what a subclass defines -----------------------------------------------------------------------------

    @abstractmethod
    def draw_part(self, part: int) -> Tensor:
        """The active link's row space in one part: A (r, m), or column numbers. It depends on seed, layer and link."""

    @abstractmethod
    def place(self, where: Tensor) -> None:
        """Start the active link in that row space with dW = 0."""

    @abstractmethod
    def identify(self, a: Tensor, b: Tensor) -> Tensor:
        """The row space of a saved link A (P r, m), stacked B. Raises `StoreError` for factors of another method."""

    @classmethod
    def check_rank(cls, method: Method, rank: int, target: Target) -> None:
        """Raises `ModelError` where the layer can't have this rank."""
        rows = min(part.rows for part in target.parts)
        cls.refuse_above(rank, min(rows, target.in_features), "as its smaller side", target)

    @staticmethod
    def refuse_above(rank: int, limit: int, what: str, target: Target) -> None:
        if rank > limit:
            raise ModelError(
                f"rank {rank} is above layer {target.name}, which has {limit} {what}; use rank <= {limit} or other "
                "targets"
            )

    @classmethod
    def share_inputs(cls, adapters: list[Any]) -> None:
        """Let adapters of one model that read the same input share what they take from it."""

    # --- factors ---------------------------------------------------------------------------------------------

    @property
    def link(self) -> int:
        """Number of the active link, from 0."""
        return len(self.finished)

    @property
    def scale(self) -> float:
        """s in dW = s B A, as set by PEFT's `set_scale`."""
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
    def where(self) -> Tensor:
        """The active link's row space, as `place` takes it."""
        return self.a

    @property
    def exact_weights(self) -> Tensor | None:
        """The trained tensor, where the saved form does not hold it to the last bit."""
        return None

    @property
    def is_stock(self) -> bool:
        """Whether the tensors in memory are the plain LoRA factors of the full update."""
        return not self.finished and not self.target.fused

    def stream_options(self, part: int) -> dict[str, Any]:
        """What a draw for this part of the layer depends on."""
        layer = self.target.name if len(self.target.parts) == 1 else f"{self.target.name}[{part}]"
        features = self.target.in_features
        return {"seed": self.seed, "layer": layer, "link": self.link, "rank": self.rank, "features": features}

    def generator(self, part: int) -> torch.Generator:
        """A random generator for this part of the layer."""
        return stream(self.seed, self.method.name, self.stream_options(part)["layer"], self.link)

    def parts_of(self, b: Tensor) -> list[Tensor]:
        """The blocks of a stacked B, one per part: (rows of the part, r) each."""
        return list(b.split([part.rows for part in self.target.parts]))

    def factors(self) -> tuple[Tensor, Tensor]:
        """The active link's A (P r, m) and stacked B, differentiable in what is trained."""
        return self.a, self.b

    def set_update(self, a: Tensor, b: Tensor) -> None:
        """Set what is trained so that the active link, already placed, has these factors."""
        self.b.copy_(b)

    def dense_a(self, where: Tensor, like: Tensor) -> Tensor:
        """A of a finished link, on the device of `like`."""
        return where

    def finished_factors(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(A (P r, m), stacked B) of every finished link."""
        return ((self.dense_a(where, b), b) for where, b in self.finished)

    def link_factors(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(A (P r, m), stacked B) of every link, the active one last."""
        yield from self.finished_factors()
        a, b = self.factors()
        yield a.detach(), b.detach()

    @torch.no_grad()
    def delta(self) -> Tensor:
        """dW over all links, fp32 (n, m)."""
        return self.dense_of(self.link_factors())

    def dense_of(self, factors: Iterable[tuple[Tensor, Tensor]], dtype: torch.dtype = torch.float32) -> Tensor:
        """sum s B A over pairs (A (P r, m), stacked B), computed in `dtype`: (n, m)."""
        dense = torch.zeros(self.target.out_features, self.target.in_features, dtype=dtype, device=self.b.device)
        for a, b in factors:
            for part, a_part, b_part in zip(self.target.parts, a.split(self.rank), self.parts_of(b), strict=True):
                dense[part.indices] += self.scale * (b_part.to(dtype) @ a_part.to(dtype))
        return dense

    def live_delta(self) -> Tensor:
        """dW over all links, (n, m), differentiable in the active link; finished links are constants."""
        return self.dense_of([*self.finished_factors(), self.factors()], self.b.dtype)

    # --- links -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def start_link(self) -> None:
        """Draw the active link's row space and start at dW = 0."""
        self.place(torch.cat([self.draw_part(part) for part in range(len(self.target.parts))]))

    @torch.no_grad()
    def restart(self) -> None:
        """Begin the next link: the update so far stays in the function, the new link starts at dW = 0."""
        self.unfold()
        self.finish_link()
        self.start_link()
        self.describe()
        self.fold()

    def finish_link(self) -> None:
        """Add the active link's update to the finished ones."""
        _, b = self.factors()
        self.finished.append((self.where.detach().clone(), b.detach().clone()))

    @torch.no_grad()
    def rebase(self, weight: Tensor) -> None:
        """Before a state_dict replaces W0 by `weight` without factors of its own."""

    # --- the saved form: stock LoRA --------------------------------------------------------------------------

    def saved_factors(self) -> tuple[Tensor, Tensor]:
        """Stock LoRA factors over all links: A (k P r, m) and B (n, k P r), so that dW = scale B A."""
        factors = list(self.link_factors())
        if len(factors) == 1 and not self.target.fused:
            return factors[0]
        a_all = torch.cat([a for a, _ in factors])
        b_all = a_all.new_zeros(self.target.out_features, len(a_all), dtype=factors[0][1].dtype)
        for i, (_, b) in enumerate(factors):
            for p, (part, block) in enumerate(zip(self.target.parts, self.parts_of(b), strict=True)):
                column = (i * len(self.target.parts) + p) * self.rank
                b_all[part.indices, column : column + self.rank] = block
        return a_all, b_all

    @torch.no_grad()
    def take_saved(self, a_all: Tensor, b_all: Tensor) -> None:
        """The inverse of `saved_factors`. Raises `StoreError` where the factors don't fit."""
        width = self.rank * len(self.target.parts)
        links, rest = divmod(a_all.shape[0], width)
        expected = (self.target.out_features, a_all.shape[0])
        if rest or links < 1 or a_all.shape[1] != self.target.in_features or tuple(b_all.shape) != expected:
            raise StoreError(
                f"layer {self.target.name}: saved factors {tuple(a_all.shape)} and {tuple(b_all.shape)} do not fit "
                f"rank {self.rank} on a {self.target.out_features} x {self.target.in_features} weight; attach with "
                "the rank that the adapter was trained with"
            )
        self.unfold()
        self.finished = []
        for i in range(links):
            link = slice(i * width, (i + 1) * width)
            blocks = b_all[:, link].split(self.rank, dim=1)
            a = a_all[link]
            b = torch.cat([block[part.indices] for part, block in zip(self.target.parts, blocks)])
            where = self.identify(a, b)
            if i == links - 1:
                self.place(where)
                self.set_update(a, b)
            else:
                self.finished.append((where.detach().clone().to(self.b.device), b.detach().clone().to(self.b.device)))
        self.describe()
        self.fold()

    def describe(self) -> None:
        """Keep PEFT's config true for the saved form: rank k P r, alpha = scale x that rank."""
        if self.is_plain_lora:
            return
        rank = (self.link + 1) * len(self.target.parts) * self.rank
        alpha = self.nominal_scale * rank / (rank**0.5 if self.config.use_rslora else 1.0)
        alpha = int(alpha) if alpha == int(alpha) else alpha  # PEFT's files hold an int where it is one
        self.layer.r[self.name] = rank
        self.layer.lora_alpha[self.name] = alpha
        self.layer.scaling[self.name] = self.nominal_scale
        if self.target.fused:
            self.config.rank_pattern[self.target.name] = rank
            self.config.alpha_pattern[self.target.name] = alpha
        else:
            self.config.r, self.config.lora_alpha = rank, alpha

    # --- in the layer ----------------------------------------------------------------------------------------

    def prepare_layer(self) -> None:
        """Give PEFT's factors the shape and type that this adapter needs."""
        if self.target.fused:
            self.layer.lora_B[self.name].weight = nn.Parameter(self.b.new_zeros(self.target.rows, self.rank))

    @property
    def can_fold(self) -> bool:
        """Whether part of the update could be in W now."""
        return self.folds_active_link

    def make_fold(self) -> Fold:
        """Write the adapter's share into W."""
        raise SpecError(f"method {self.method.name!r} does not write into W")

    def unfold(self) -> None:
        """Before anything but an optimizer changes factors: make the base weight W0 again."""
        self.layer.undo_fold()

    def fold(self) -> None:
        """After that: write into the base weight again."""
        self.layer.sync_fold()

    def follow_device(self) -> None:
        """After the layer has moved: take everything that is not a parameter along."""
        device = self.b.device
        self.finished = [(where.to(device), b.to(device)) for where, b in self.finished]

    def fused_forward(self, x: Tensor) -> Tensor | None:
        """The layer's output as one autograd node; None where PEFT's forward must run."""
        return None

    def forward(  # type: ignore[override]
        self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: object
    ) -> Tensor:
        """`result` (..., n) is the base layer's output for x (..., m); returns result + sum s x A^T B^T."""
        x = module.lora_dropout[self.name](x)
        fold = self.layer._fold
        in_weight = fold is not None and fold.name == self.name
        total = widen(result, self.b) if self.finished else result
        for a, b in [*([] if in_weight else self.finished_factors()), self.factors()]:
            inner = F.linear(x, a.to(self.a.device, self.a.dtype)).split(self.rank, dim=-1)
            blocks = self.parts_of(b.to(self.b.device, self.b.dtype))
            pieces = [F.linear(part, block) * self.scale for part, block in zip(inner, blocks)]
            total = add_to_parts(total, pieces, self.target.parts)
        return total.to(result.dtype)

    # PEFT calls these three. The layer takes a merge back from its copy of W0: exact to the bit, unlike a subtraction.

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


def adapters_of(layer: object) -> dict[str, Adapter]:
    """The adapters of tunewise on a layer, by name."""
    return layer.__dict__.get("tunewise_adapters", {})


def layer_adapters(model: nn.Module, adapter_name: str | None = None) -> list[Adapter]:
    """The adapters of tunewise on a model, layer by layer."""
    return [
        adapter
        for module in model.modules()
        for name, adapter in adapters_of(module).items()
        if adapter_name is None or name == adapter_name
    ]
