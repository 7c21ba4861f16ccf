"""Weights that hold several of query, key and value: which rows of the output are which, by architecture."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunewise.errors import ModelError


class Part(NamedTuple):
    """Rows of a layer's output: `start` to `stop` (exclusive) in each of `repeats` blocks of `period` rows."""

    start: int
    stop: int
    period: int = 0
    repeats: int = 1

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return (self.stop - self.start) * self.repeats

    @property
    def indices(self) -> slice | Tensor:
        """The rows, to index a tensor's dimension of output features with."""
        if self.repeats == 1:
            return slice(self.start, self.stop)
        blocks = torch.arange(self.repeats)[:, None] * self.period
        return (blocks + torch.arange(self.start, self.stop)).flatten()


class _Config(Protocol):
    num_attention_heads: int
    hidden_size: int


Widths = list[tuple[str, int]]
Layout = Callable[[_Config, int], tuple[int, Widths]]
"""(config, output features) -> how often a block repeats, and the roles in a block with their rows, in order."""


def _contiguous(config: _Config, rows: int) -> tuple[int, Widths]:
    return 1, [(role, rows // 3) for role in ("query", "key", "value")]


def _head_by_head(config: _Config, rows: int) -> tuple[int, Widths]:
    heads = config.num_attention_heads
    return heads, [(role, rows // (3 * heads)) for role in ("query", "key", "value")]


def _keys_and_values(config: _Config, rows: int) -> tuple[int, Widths]:
    return 1, [("key", rows // 2), ("value", rows // 2)]


def _grouped(config: _Config, rows: int) -> tuple[int, Widths]:
    """All queries, then the fewer keys and values."""
    heads = config.num_attention_heads
    of_attention = getattr(config, "attn_config", config)  # DBRX keeps it apart
    groups = int(getattr(of_attention, "kv_n_heads", getattr(config, "num_key_value_heads", heads)))
    width = rows // (heads + 2 * groups)
    return 1, [("query", heads * width), ("key", groups * width), ("value", groups * width)]


def _gpt_bigcode(config: _Config, rows: int) -> tuple[int, Widths]:
    if not getattr(config, "multi_query", False):
        return _head_by_head(config, rows)
    width = rows // (config.num_attention_heads + 2)
    return 1, [("query", config.num_attention_heads * width), ("key", width), ("value", width)]


def _falcon(config: _Config, rows: int) -> tuple[int, Widths]:
    heads = config.num_attention_heads
    if getattr(config, "new_decoder_architecture", False):
        groups = int(getattr(config, "num_kv_heads", heads))
        width = rows // (heads + 2 * groups)
        return groups, [("query", heads // groups * width), ("key", width), ("value", width)]
    return _gpt_bigcode(config, rows)


def _codegen(config: _Config, rows: int) -> tuple[int, Widths]:
    return 4, [(role, rows // 12) for role in ("query", "value", "key")]


def _latent(config: _Config, rows: int) -> tuple[int, Widths]:
    """Multi-head latent attention (DeepSeek): keys without position, and values, head by head."""
    key, value = getattr(config, "qk_nope_head_dim", 0), getattr(config, "v_head_dim", 0)
    return config.num_attention_heads, [("key", int(key)), ("value", int(value))]


_LAYOUTS: dict[str, Layout] = {
    **dict.fromkeys(("gpt2.c_attn", "imagegpt.c_attn", "decision_transformer.c_attn", "openai.c_attn"), _contiguous),
    **dict.fromkeys(("mpt.Wqkv", "modernbert.Wqkv", "layoutlmv2.qkv_linear"), _contiguous),
    **dict.fromkeys(("gpt_neox.query_key_value", "gpt_neox_japanese.query_key_value"), _head_by_head),
    **dict.fromkeys(("bloom.query_key_value", "persimmon.query_key_value", "deberta.in_proj"), _head_by_head),
    **dict.fromkeys(("phi3.qkv_proj", "phi4_multimodal.qkv_proj", "dbrx.Wqkv"), _grouped),
    **dict.fromkeys(("blip.qkv", "blip_2.qkv", "hiera.qkv", "timesformer.qkv", "vitdet.qkv"), _contiguous),
    **dict.fromkeys(("qwen2_vl.qkv", "qwen2_5_vl.qkv", "qwen3_vl.qkv", "glm4v.qkv", "sam.qkv"), _contiguous),
    "gpt_bigcode.c_attn": _gpt_bigcode,
    "falcon.query_key_value": _falcon,
    "codegen.qkv_proj": _codegen,
    "jetmoe.kv_proj": _keys_and_values,
}
_LOOKS_FUSED = re.compile(r"qkv|query_key_value|c_attn|kv_proj|kv_b_proj|W_pack|in_proj$", re.IGNORECASE)


def looks_fused(leaf: str) -> bool:
    """Whether a layer of attention with this name holds several projections."""
    return _LOOKS_FUSED.search(leaf) is not None


def fused_parts(model: nn.Module, name: str, rows: int) -> dict[str, Part]:
    """The rows of each role in the fused layer `name`, which has `rows` output features.

    Raises:
        ModelError: the layout of this layer is not known.
    """
    parent, _, leaf = name.rpartition(".")
    attention = model.get_submodule(parent)
    module = type(attention).__module__.split(".")
    is_known = module[:2] == ["transformers", "models"]
    architecture = module[2] if is_known else type(model).__name__
    layout = _LAYOUTS.get(f"{architecture}.{leaf}")
    layer = getattr(attention, leaf)
    if isinstance(getattr(layer, "base_layer", layer), Conv1D) or (leaf == "c_attn" and not is_known):
        layout = layout or _contiguous  # GPT-2's own kind of layer or, in code of one's own, its name for it
    if leaf == "c_attn" and getattr(attention, "is_cross_attention", False):
        layout = None if architecture == "gpt_bigcode" else _keys_and_values
    elif leaf == "kv_b_proj":
        layout = _latent
    config = getattr(attention, "config", None) or getattr(model, "config", None)
    parts: dict[str, Part] = {}
    if layout is not None:
        repeats, widths = layout(config, rows)  # type: ignore[arg-type]
        period = sum(width for _, width in widths)
        if period * repeats == rows and period:
            start = 0
            for role, width in widths:
                parts[role] = Part(start, start + width, *(() if repeats == 1 else (period, repeats)))
                start += width
    if not parts:
        raise ModelError(
            f"layer {name} ({architecture}) holds several of query, key and value in one weight, in an order that is "
            f"not known here; adapt it whole: targets={leaf!r}, 'attention' or 'all-linear'"
        )
    return parts
