"""One training step of a method, followed on the meta device: what is trained, stored, and how much memory it takes.

A deep model is followed with `SHORT` blocks: counts go on in a straight line from there, and the order of
allocations is stretched (`timeline.py`), which gives the whole model's to the byte.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn

from tunewise.errors import ModelError, TunewiseError
from tunewise.methods.attach import attachment, layer_adapters
from tunewise.methods.catalog import get_method
from tunewise.methods.chain import restart
from tunewise.methods.columns import ColumnAdapter
from tunewise.models.layers import find_targets
from tunewise.preview.skeleton import Skeleton, can_be_short, find_blocks
from tunewise.preview.timeline import SHORT, Timeline
from tunewise.preview.tracing import trace_step
from tunewise.spec import MethodSpec
from tunewise.training.build import chain_of, facts_of, put_on

HEAP_DEPTH = 12
"""Blocks of the step that is made again on the heap: the share that a heap wastes does not grow with depth."""


@dataclass(frozen=True)
class Step:
    """A method's step at one batch. Numbers of scalars, and bytes."""

    parameters: int
    trainable: int
    adapter: int
    head: int
    weights: int
    """Parameters, buffers, and what adapters hold aside: columns of W0, finished links (a chain is looked at in its
    last link, where it holds most)."""
    gradients: int
    stored: int
    """The tensors of a saved adapter; for `fft` and `head` those that changed."""
    whole: int
    """All parameters of the model: what a Trainer's checkpoint holds where there is no adapter."""
    beside: int
    """PaCA's columns beside a checkpoint's adapter, bit for bit."""
    shapes: tuple[tuple[int, int], ...]
    """(outputs n, inputs m) of every adapted layer."""
    timeline: Timeline
    short_timeline: Timeline
    """The same for at most `HEAP_DEPTH` blocks ..."""
    short_trained: tuple[int, ...]
    """... with the bytes of each trained tensor."""


class Stepper:
    """Steps of methods on one model and batch; what several methods have in common is followed once."""

    def __init__(self, skeleton: Skeleton, *, batch: int, length: int) -> None:
        self.skeleton = skeleton
        self.size = batch
        self.length = length
        self._traces: dict[tuple[Any, ...], Timeline] = {}

    def step(self, method: MethodSpec) -> Step:
        """Raises `ModelError` for a rank above a layer, an unknown target, or a model that can't be followed
        without weights."""
        if not self._spread(method):
            return self._whole_step(method)
        depth: int = self.skeleton.config.num_hidden_layers
        model = self._attached(method, SHORT)
        four, three = _Tally.of(model), _Tally.of(self._attached(method, SHORT - 1))
        timeline = self._trace(model, method, SHORT)
        deep = timeline.stretched(depth)
        if deep is None:
            return self._whole_step(method)
        found = find_blocks(_base(model), SHORT)
        assert found is not None
        a_block = [p.nbytes for p in found[1][2].parameters() if p.requires_grad]
        shallow = min(depth, HEAP_DEPTH)
        short = timeline.stretched(shallow)
        assert short is not None
        trained = [p.nbytes for p in model.parameters() if p.requires_grad] + a_block * (shallow - SHORT)
        return Step(
            **four.at(depth, three),
            shapes=self._shapes(method, self._whole),
            timeline=deep,
            short_timeline=short,
            short_trained=tuple(trained),
        )

    def _whole_step(self, method: MethodSpec) -> Step:
        model = self._attached(method, None)
        timeline = self._trace(model, method, None)
        return Step(
            **_Tally.of(model).at(0, None),
            shapes=self._shapes(method, self._whole),
            timeline=timeline,
            short_timeline=timeline,
            short_trained=tuple(p.nbytes for p in model.parameters() if p.requires_grad),
        )

    @cached_property
    def _whole(self) -> nn.Module:
        return self.skeleton.build()

    @cached_property
    def _deep(self) -> bool:
        return can_be_short(self.skeleton, self._whole)

    def _spread(self, method: MethodSpec) -> bool:
        """Whether a short model stands for the whole one, with the method in every block alike."""
        if not self._deep:
            return False
        if not get_method(method.name).adapts:
            return True
        depth = self.skeleton.config.num_hidden_layers
        found = find_blocks(self._whole, depth)
        assert found is not None
        inside = re.compile(re.escape(found[0]) + r"\.(\d+)\.(.*)")
        per_block: list[list[str]] = [[] for _ in range(depth)]
        for target in find_targets(self._whole, method.targets):
            at = inside.fullmatch(target.name)
            if at is None:
                return False
            per_block[int(at[1])].append(at[2])
        if any(names != per_block[0] for names in per_block):
            return False
        try:
            short = find_targets(self.skeleton.build(SHORT), method.targets)
        except ModelError:
            return False  # layers listed by their numbers, one by one
        return len(short) == SHORT * len(per_block[0])

    def _shapes(self, method: MethodSpec, model: nn.Module) -> tuple[tuple[int, int], ...]:
        if not get_method(method.name).adapts:
            return ()
        found = find_targets(model, method.targets)
        return tuple((stop - start, t.in_features) for t in found for start, stop in t.parts)

    def _attached(self, method: MethodSpec, depth: int | None) -> Any:
        """The model with the method on it, in its last link where it has several."""
        row = get_method(method.name)
        options: dict[str, Any] = {}
        if row.start == "gradient":  # LoRA's factors; their start needs a gradient, and shapes don't
            method = method.model_copy(update={"name": "lora"})
        if method.name in ("peft:pissa", "peft:olora"):  # LoRA's factors again; their start needs the weights
            method = method.model_copy(update={"name": "peft:lora"})
        if method.name == "peft:adalora":
            options["peft_options"] = {"total_step": 1000}
        model = put_on(self.skeleton.build(depth), method, seed=0, **options)
        for _ in range(links_of(method) - 1):
            restart(model)
        for adapter in layer_adapters(model):
            if isinstance(adapter, ColumnAdapter) and _will_fold(adapter, model):
                _as_if_folded(adapter)
        return model.train()

    def _trace(self, model: Any, method: MethodSpec, depth: int | None) -> Timeline:
        key = (_kind(model), method.rank, str(method.targets), depth)
        if key not in self._traces:
            blocks = find_blocks(_base(model), depth) if depth is not None else None
            batch = self.skeleton.batch(self.size, self.length)
            try:
                self._traces[key] = trace_step(
                    model, batch, device=self.skeleton.device, blocks=blocks[1] if blocks else None
                )
            except TunewiseError:
                raise
            except (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError, AttributeError) as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
                name = type(self.skeleton.config).__name__
                raise ModelError(f"{name}: a step can't be followed without weights ({reason})") from None
        return self._traces[key]


@dataclass(frozen=True)
class _Tally:
    """What of a `Step` grows in a straight line with the number of blocks."""

    parameters: int
    trainable: int
    adapter: int
    head: int
    weights: int
    gradients: int
    stored: int
    whole: int
    beside: int

    @classmethod
    def of(cls, model: Any) -> _Tally:
        facts = facts_of(model)
        tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}
        trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
        adapters = layer_adapters(model)
        return cls(
            facts.parameters,
            facts.trainable,
            facts.adapter,
            facts.head,
            weights=sum(t.nbytes for t in tensors.values()) + sum(_held_aside(a) for a in adapters),
            gradients=trained,
            stored=_bytes(get_peft_model_state_dict(model)) if isinstance(model, PeftModel) else trained,
            whole=sum(p.nbytes for p in model.parameters()),
            beside=sum(a.b.nbytes for a in adapters if isinstance(a, ColumnAdapter) and a.holds_weights),
        )

    def at(self, depth: int, one_less: _Tally | None) -> dict[str, int]:
        """The same with `depth` blocks in place of `SHORT`, given a model with one less."""
        mine = vars(self)
        if one_less is None:
            return dict(mine)
        return {key: mine[key] + (depth - SHORT) * (mine[key] - value) for key, value in vars(one_less).items()}


def links_of(method: MethodSpec) -> int:
    """Links of a chain over a run; 1 without one."""
    row = get_method(method.name)
    chain = chain_of(method) if row.chain is not None else None
    return (chain.links if chain is not None else None) or 1


def _base(model: Any) -> nn.Module:
    base: nn.Module = model.get_base_model() if isinstance(model, PeftModel) else model
    return base


def _bytes(state: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in state.values())


def _kind(model: Any) -> tuple[Any, ...]:
    """What decides the order of a step's allocations, besides rank and targets."""
    row = attachment(model).method
    if row.passed_through or not row.adapts:
        return (row.name,)
    adapters = layer_adapters(model)
    if adapters and all(_stands_folded(a) for a in adapters):
        return ("folded",)
    return (row.trained, row.where if row.selects_columns else None, adapters[0].link if adapters else 0)


def _will_fold(adapter: ColumnAdapter, model: nn.Module) -> bool:
    """`fold.can_fold` for a model that has no weights yet."""
    weight = adapter.layer.get_base_layer().weight
    if sum(p is weight for _, p in model.named_parameters(remove_duplicate=False)) > 1 or weight.requires_grad:
        return False
    if isinstance(adapter.layer.lora_dropout[adapter.name], nn.Dropout) or adapter.fold_mode == "never":
        return False
    return weight.element_size() > 2 or adapter.fold_mode == "always"


class _Folded:
    """Stands for a `Fold`, so that a layer's forward takes the way of a folded weight: on the meta device nothing can
    be written into one."""

    def __init__(self, adapter: ColumnAdapter) -> None:
        self.adapter = adapter
        self.scale = adapter.scale

    def pristine(self) -> Tensor:
        weight: Tensor = self.adapter.layer.get_base_layer().weight
        return weight


def _as_if_folded(adapter: ColumnAdapter) -> None:
    layer = adapter.layer
    object.__setattr__(layer, "_fold", _Folded(adapter))
    layer.sync_fold = _nothing


def _nothing() -> None:
    pass


def _stands_folded(adapter: Any) -> bool:
    return isinstance(adapter.layer.__dict__.get("_fold"), _Folded)


def _held_aside(adapter: Any) -> int:
    """Bytes that an adapter of ours keeps besides parameters: columns of W0, finished links."""
    held = sum(tensor.nbytes for pair in adapter.finished for tensor in pair)
    if not isinstance(adapter, ColumnAdapter):
        return held
    weight = adapter.layer.get_base_layer().weight
    held += adapter.columns.nbytes + (adapter._origin.nbytes if adapter._origin is not None else 0)
    if _stands_folded(adapter):
        touched = {int(c) for columns, _ in adapter.finished for c in columns} | {int(c) for c in adapter.columns}
        held += len(touched) * adapter.target.out_features * weight.element_size()  # W0's columns, bit for bit
        held += adapter.b.numel() * max(weight.element_size(), 4)  # and those the active link starts from
    return held
