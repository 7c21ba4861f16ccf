"""Which layers of a model are adapted: words for every architecture, names and patterns.

`"qv"`: query and value; `"attention"`: every linear layer of the attention blocks; `"all-linear"`: every linear layer
of the repeated blocks. A weight that holds q, k and v is adapted in the requested rows of its output alone.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunewise.errors import ModelError, suggest_nearest
from tunewise.models.blocks import Layers, find_blocks
from tunewise.models.fused import Part, fused_parts, looks_fused

# Leaf names by role, over BERT, RoBERTa, ViT, DINOv2, Llama, Mistral, Qwen, DeBERTa, DistilBERT, T5, OPT, ...
ROLES: dict[str, frozenset[str]] = {
    "query": frozenset(
        {"query", "q_proj", "query_proj", "q_lin", "q", "to_q", "wq", "Wq", "q_head", "q_attn", "q_b_proj"}
    ),
    "key": frozenset({"key", "k_proj", "key_proj", "k_lin", "k", "to_k", "wk", "Wk", "k_head"}),
    "value": frozenset({"value", "v_proj", "value_proj", "v_lin", "v", "to_v", "wv", "Wv", "v_head"}),
}

# Leaf names of layers that read one and the same input: attention's three projections, a gated MLP's two.
READ_TOGETHER: tuple[frozenset[str], ...] = (
    frozenset().union(*ROLES.values()),
    frozenset({"gate_proj", "up_proj"}),
    frozenset({"w1", "w3"}),
    frozenset({"wi_0", "wi_1"}),
)

_ALL_ROLES = frozenset().union(*ROLES.values())
_WORDS = ("qv", "attention", "all-linear")
IN_BLOCK = re.compile(r"\.\d+\.")
_IN_ATTENTION = re.compile(r"(^|\.)(\w*attn\w*|\w*attention\w*)(\.|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """One layer to adapt. `parts` are the adapted rows of its output: one part with all rows in an ordinary layer."""

    name: str
    out_features: int
    in_features: int
    parts: tuple[Part, ...]

    @property
    def fused(self) -> bool:
        """Whether only some rows of the output are adapted."""
        return self.parts != (Part(0, self.out_features),)

    @property
    def rows(self) -> int:
        """Adapted rows of the output."""
        return sum(part.rows for part in self.parts)


def is_linear(module: nn.Module) -> bool:
    """Whether the module is a linear map with a 2-D weight (quantized ones subclass `nn.Linear`)."""
    return isinstance(module, nn.Linear | Conv1D)


def shape_of(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer, whichever way its weight is stored."""
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    assert isinstance(module, nn.Linear)
    return module.out_features, module.in_features


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer by name; a layer with adapters counts as its base layer."""
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    inside = tuple(name + "." for name in adapted)
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        base = module.get_base_layer() if name in adapted else module
        if is_linear(base) and not name.startswith(inside):
            layers[name] = base
    return layers


def find_targets(
    model: nn.Module, targets: str | Sequence[str] | Sequence[Target], layers: Layers | None = None
) -> list[Target]:
    """The layers that `targets` names, in the model's order; with `layers` only those in these blocks.

    `targets` is a word (`"qv"`, `"attention"`, `"all-linear"`), `Target`s, or names: a leaf (`"query"`), the end of a
    path (`"output.dense"`), a path, a pattern with `*`, or a role (`"query"`, `"key"`, `"value"`) where no layer has
    that name. `layers` are numbers of blocks from 0, or `"last 2"`. Raises `ModelError` with the nearest names.
    """
    if layers is not None:
        return _in_blocks(model, find_targets(model, targets), layers)
    linears = linear_layers(model)
    if not targets and not isinstance(targets, str):
        raise ModelError("targets names no layer; use 'qv', 'attention', 'all-linear', or names")
    if not isinstance(targets, str) and all(isinstance(t, Target) for t in targets):
        return _check_shapes(model, linears, [t for t in targets if isinstance(t, Target)])
    if not linears:
        raise ModelError(f"{type(model).__name__} has no linear layer that could be adapted")
    if isinstance(targets, str) and targets in _WORDS:
        slices = _by_word(linears, targets)
        if not slices:
            raise ModelError(
                f"targets {targets!r}: {type(model).__name__} has no such layers; name them, for example "
                f"targets={_leaves(linears)[:4]}"
            )
    else:
        names = [t.strip() for t in targets.split(",")] if isinstance(targets, str) else [str(t) for t in targets]
        slices = _by_names(linears, names, type(model).__name__)
    chosen = (_target(model, name, module, slices[name]) for name, module in linears.items() if name in slices)
    return [target for target in chosen if target is not None]


def _in_blocks(model: nn.Module, targets: list[Target], layers: Layers) -> list[Target]:
    blocks = find_blocks(model)
    if blocks is None:
        raise ModelError(f"{type(model).__name__} has no list of blocks, so layers {layers!r} means nothing to it")
    numbers = blocks.chosen(layers)
    inside = [target for target in targets if blocks.number_of(target.name) in numbers]
    if not inside:
        raise ModelError(f"layers {layers!r}: none of the layers that targets names lies in these blocks")
    return inside


def _check_shapes(model: nn.Module, linears: dict[str, nn.Module], targets: list[Target]) -> list[Target]:
    for target in targets:
        if target.name not in linears:
            raise ModelError(
                f"{type(model).__name__} has no layer {target.name}{suggest_nearest(target.name, linears)}"
            )
        out_features, in_features = shape_of(linears[target.name])
        if (out_features, in_features) != (target.out_features, target.in_features):
            raise ModelError(
                f"layer {target.name} is {out_features} x {in_features} here, and {target.out_features} x "
                f"{target.in_features} where the adapter was trained; this is another base model"
            )
    return targets


# Each of the following returns names of layers with the roles whose slices are adapted; without roles the whole layer.


def _by_word(linears: dict[str, nn.Module], word: str) -> dict[str, set[str]]:
    names = [name for name in linears if IN_BLOCK.search(name)]
    if word == "all-linear":
        return {name: set() for name in names}
    if word == "attention":
        return {name: set() for name in names if _IN_ATTENTION.search(name.rpartition(".")[0])}
    return _by_roles(names, {"query", "value"})


def _by_roles(names: Sequence[str], roles: set[str]) -> dict[str, set[str]]:
    """Inside attention, where the model has parts of such a name: RWKV's feed-forward layers have a `value` too."""
    wanted = frozenset().union(*(ROLES[role] for role in roles))
    leaves = {name: name.rpartition(".")[2] for name in names if _IN_ATTENTION.search(name.rpartition(".")[0])}
    leaves = leaves or {name: name.rpartition(".")[2] for name in names}
    return {
        name: roles if looks_fused(leaf) else set()
        for name, leaf in leaves.items()
        if leaf in wanted or (looks_fused(leaf) and leaf not in _ALL_ROLES)
    }


def _by_names(linears: dict[str, nn.Module], names: list[str], model_name: str) -> dict[str, set[str]]:
    slices: dict[str, set[str]] = {}
    for wanted in names:
        if not wanted:
            raise ModelError("targets: an empty name; name layers, or use 'qv', 'attention' or 'all-linear'")
        hits: dict[str, set[str]] = {
            name: set()
            for name in linears
            if name == wanted or name.endswith("." + wanted) or ("*" in wanted and fnmatch.fnmatch(name, wanted))
        }
        if not hits and wanted in ROLES:
            hits = _by_roles([n for n in linears if IN_BLOCK.search(n)], {wanted})
        if not hits:
            choices = {*_leaves(linears), *_WORDS}
            raise ModelError(f"no layer of {model_name} is called {wanted!r}{suggest_nearest(wanted, choices)}")
        for name, roles in hits.items():
            # a layer that is named both as such and by slices is adapted as such
            both = name not in slices or bool(slices[name] and roles)
            slices[name] = slices.get(name, set()) | roles if both else set()
    return slices


def _leaves(linears: dict[str, nn.Module]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[2] for name in linears))


def _target(model: nn.Module, name: str, module: nn.Module, roles: set[str]) -> Target | None:
    """The layer, or those of its rows that have one of `roles`; None where it has none of them."""
    out_features, in_features = shape_of(module)
    if not roles:
        return Target(name, out_features, in_features, (Part(0, out_features),))
    parts = tuple(part for role, part in fused_parts(model, name, out_features).items() if role in roles)
    return Target(name, out_features, in_features, parts) if parts else None
