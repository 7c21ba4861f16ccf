"""The networks of the benchmark: from configurations, with random weights, dropout 0 and a classification head.

Vocabularies are cut to 1,000 words: an embedding that is frozen and looked up costs a step nothing, and the memory of
a line is then that of the blocks. Everything else has the size of the model it is named after.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

VOCABULARY, LABELS = 1000, 3
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class Network:
    """A network and the batches that it is stepped on: (rows, tokens a row); images bring their own tokens."""

    about: str
    make: Callable[[], Any]
    cpu: tuple[int, int]
    cuda: tuple[int, int]
    image: bool = False


def _bert(size: dict[str, int]) -> Any:
    return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, num_labels=LABELS, **_NO_DROPOUT, **size))


def _roberta() -> Any:
    config = RobertaConfig(
        vocab_size=VOCABULARY, num_labels=LABELS, max_position_embeddings=514, pad_token_id=1, **_NO_DROPOUT
    )
    return RobertaForSequenceClassification(config)


def _vit(size: dict[str, int]) -> Any:
    return ViTForImageClassification(ViTConfig(num_labels=LABELS, **_NO_DROPOUT, **size))


def _llama(size: dict[str, int]) -> Any:
    config = LlamaConfig(vocab_size=VOCABULARY, num_labels=LABELS, pad_token_id=0, attention_dropout=0.0, **size)
    config.use_cache = False
    return LlamaForSequenceClassification(config)


def _sizes(hidden: int, layers: int, heads: int, inner: int, **more: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        **more,
    }


NETWORKS: dict[str, Network] = {
    "host": Network(
        "BERT of 12 layers and width 32 on 16 tokens: next to no arithmetic, what is left is the host's work",
        lambda: _bert(_sizes(32, 12, 2, 64)),
        (2, 8),
        (2, 8),
    ),
    "minilm": Network(
        "BERT, 6 layers, width 384 (MiniLM)", lambda: _bert(_sizes(384, 6, 12, 1536)), (8, 64), (32, 128)
    ),
    "roberta-base": Network("RoBERTa-base, 12 layers, width 768", _roberta, (4, 64), (32, 128)),
    "vit-tiny": Network(
        "ViT-Tiny, 12 layers, width 192, 197 tokens", lambda: _vit(_sizes(192, 12, 3, 768)), (4, 197), (64, 197), True
    ),
    "vit-base": Network(
        "ViT-Base, 12 layers, width 768, 197 tokens", lambda: _vit(_sizes(768, 12, 12, 3072)), (2, 197), (32, 197), True
    ),
    "llama-1b": Network(
        "Llama, 16 layers, width 2048 (the shape of Llama-3.2-1B)",
        lambda: _llama(_sizes(2048, 16, 32, 8192, num_key_value_heads=8)),
        (1, 128),
        (8, 512),
    ),
    "llama-8b-2": Network(
        "two blocks of an 8 B Llama, width 4096",
        lambda: _llama(_sizes(4096, 2, 32, 14336, num_key_value_heads=8)),
        (1, 128),
        (4, 512),
    ),
}


def build(name: str, *, dtype: torch.dtype, device: torch.device, seed: int = 0) -> nn.Module:
    """The network, frozen, in training mode (its dropout is 0)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = NETWORKS[name].make()
    return model.to(device, dtype).train().requires_grad_(False)


def batch_of(
    name: str, *, dtype: torch.dtype, device: torch.device, rows: int | None = None, tokens: int | None = None
) -> dict[str, Tensor]:
    """One batch with labels, of the network's own size unless given; no padding."""
    network = NETWORKS[name]
    own_rows, own_tokens = network.cuda if device.type == "cuda" else network.cpu
    rows, tokens = rows or own_rows, tokens or own_tokens
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(rows) % LABELS
    if network.image:
        images = torch.randn(rows, 3, 224, 224, generator=generator)
        return {"pixel_values": images.to(device, dtype), "labels": labels.to(device)}
    ids = torch.randint(3, VOCABULARY, (rows, tokens), generator=generator)
    return {"input_ids": ids.to(device), "labels": labels.to(device)}
