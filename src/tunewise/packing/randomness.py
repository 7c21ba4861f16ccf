"""Dropout for several runs in one batch: each run's masks from its own stream, in the shapes it would have alone.

So a packed run draws what it draws by itself. A run's part of the batch may be padded to the longest text of the pack;
its masks have its own length, and padding is zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tunewise.packing.streams import Stream

ATTENTION = "tunewise_packed"
"""The name under which transformers finds `packed_attention`."""


@dataclass
class Layout:
    """How the batch lies: runs one after another, `rows` examples each of which the first `own_rows[k]` are run k's,
    texts of `length` tokens of which the first `own_lengths[k]` are its own (None where there is no such dimension)."""

    rows: int = 0
    length: int | None = None
    own_rows: list[int] = field(default_factory=list)
    own_lengths: list[int | None] = field(default_factory=list)
    streams: Sequence[Stream] = ()

    @property
    def even(self) -> bool:
        """Whether nothing is padded."""
        return all(n == self.rows for n in self.own_rows) and all(n == self.length for n in self.own_lengths)

    def parts(self, x: Tensor, lengths: Sequence[int] = ()) -> Iterator[tuple[int, Tensor]]:
        """(k, run k's own part) of a tensor whose first dimension is the batch; `lengths` are the dimensions of
        tokens."""
        for k, piece in enumerate(x.chunk(len(self.own_rows))):
            yield k, self.own(k, piece, lengths)

    def own(self, k: int, piece: Tensor, lengths: Sequence[int] = ()) -> Tensor:
        """Of run k's piece of the batch, what is not padding."""
        piece = piece[: piece.shape[0] * self.own_rows[k] // self.rows]
        length = self.own_lengths[k]
        for dimension in lengths:
            if length is not None and piece.shape[dimension] == self.length:
                piece = piece.narrow(dimension, 0, length)
        return piece

    def whole(self, parts: Sequence[Tensor], like: Sequence[int]) -> Tensor:
        """The runs' own parts as one batch again, filled up with zeros to the shape `like`."""
        size = (like[0] // len(parts), *like[1:])
        filled = []
        for part in parts:
            missing = [n - m for n, m in zip(size, part.shape, strict=True)]
            pads = [number for n in reversed(missing) for number in (0, n)]
            filled.append(F.pad(part, pads) if any(missing) else part)
        return torch.cat(filled)

    def kept(self, like: Tensor, p: float, lengths: Sequence[int]) -> Tensor:
        """A dropout mask on the CPU, in the shape of `like`: 1 / (1 - p) where a number is kept, else 0."""
        make = torch.empty_like if self.even else torch.zeros_like
        mask = make(like, memory_format=torch.contiguous_format, requires_grad=False)
        for k, part in self.parts(mask, lengths):
            draw = self.streams[k].cpu
            if part.is_contiguous():
                part.bernoulli_(1 - p, generator=draw)
            else:  # numbers are drawn in the order of memory
                own = torch.empty_like(part, memory_format=torch.contiguous_format)
                part.copy_(own.bernoulli_(1 - p, generator=draw))
        return mask.div_(1 - p)


class PackedDropout(nn.Dropout):
    """Takes a `nn.Dropout`'s place in a packed model."""

    def __init__(self, p: float, layout: Layout) -> None:
        super().__init__(p)
        self.layout = layout

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        lengths = {3: (1,), 4: (2, 3)}.get(x.ndim, ())
        if not x.is_cuda:
            return x * self.layout.kept(x, self.p, lengths)
        dropped = []
        for k, part in self.layout.parts(x, lengths):  # there torch draws a fused dropout's mask in an order of its own
            with self.layout.streams[k].drawing():
                dropped.append(F.dropout(part, self.p))
        return self.layout.whole(dropped, x.shape)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' sdpa attention, with each run's own dropout. query, key, value: (batch, heads, tokens, size)."""
    if dropout == 0.0:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=0.0, **options)
    layout: Layout = module.__dict__["packed_layout"]
    unusual = any(options.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    if not unusual and query.shape[2] == key.shape[2] and not query.is_cuda:
        return _attention(module, query, key, value, attention_mask, dropout, layout, **options), None
    runs, size = len(layout.own_rows), query.shape
    masks = [None] * runs if attention_mask is None else attention_mask.expand(size[0], -1, -1, -1).chunk(runs)
    pieces = zip(query.chunk(runs), key.chunk(runs), value.chunk(runs), masks, strict=True)
    outputs = []
    for k, (q, k_, v, mask) in enumerate(pieces):
        q, k_, v = (layout.own(k, t, (2,)) for t in (q, k_, v))
        mask = None if mask is None else layout.own(k, mask, (2, 3))
        with layout.streams[k].drawing():
            outputs.append(sdpa_attention_forward(module, q, k_, v, mask, dropout=dropout, **options)[0])
    return layout.whole(outputs, (size[0], size[2], size[1], value.shape[-1])), None


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    layout: Layout,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> Tensor:
    """softmax(s q k^T + mask) v over all runs at once, as torch's sdpa computes it on a CPU under dropout, each run's
    mask from its own numbers. Returns (batch, tokens, heads, size)."""
    shared = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, shared), repeat_kv(value, shared)
    scores = torch.matmul(query * (query.shape[-1] ** -0.5 if scaling is None else scaling), key.mT)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    if attention_mask is None and is_causal and query.shape[2] > 1:
        attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    if attention_mask is not None:
        bias = attention_mask
        if bias.dtype == torch.bool:  # finite: a row of padding that sees nothing is no NaN
            bias = torch.zeros_like(bias, dtype=scores.dtype).masked_fill_(~bias, torch.finfo(scores.dtype).min)
        scores += bias
    shares = scores.softmax(-1)
    return torch.matmul(shares * layout.kept(shares, dropout, (2, 3)), value).transpose(1, 2).contiguous()


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
