"""Tiny models of every architecture the suite runs on, from configs and a fixed seed, each with a batch that has labels.

Imports nothing of tunewise: a process that checks the stock tools loads this file too. Dropout is 0 unless asked
for, and weights are larger than usual, so that a wrong factor shows in the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER, VOCAB, LABELS = 32, 2, 4, 2, 48, 64, 3
COMMON = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": INNER}
TEXT = {**COMMON, "vocab_size": VOCAB, "max_position_embeddings": 40, "num_labels": LABELS, "initializer_range": 0.15}
IMAGE = {**COMMON, "image_size": 16, "patch_size": 8, "num_labels": LABELS, "initializer_range": 0.15}


def _bert(dropout: float, **more: Any) -> Any:
    config = BertConfig(**TEXT, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **more)
    return BertForSequenceClassification(config)


def _roberta(dropout: float, **more: Any) -> Any:
    config = RobertaConfig(
        **TEXT, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, pad_token_id=1, **more
    )
    return RobertaForSequenceClassification(config)


def _deberta(dropout: float, **more: Any) -> Any:
    config = DebertaV2Config(
        **TEXT,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        relative_attention=True,
        position_biased_input=False,
        type_vocab_size=0,
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        position_buckets=8,
        **more,
    )
    return DebertaV2ForSequenceClassification(config)


def _gpt2(dropout: float, **more: Any) -> Any:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_positions=40,
            n_embd=HIDDEN,
            n_layer=LAYERS,
            n_head=HEADS,
            n_inner=INNER,
            initializer_range=0.15,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            bos_token_id=0,
            eos_token_id=0,
            **more,
        )
    )


def _llama_config(dropout: float, **more: Any) -> LlamaConfig:
    options = {**TEXT, "num_key_value_heads": KV_HEADS, "attention_dropout": dropout, "pad_token_id": 0, **more}
    return LlamaConfig(**options)


def _llama(dropout: float, **more: Any) -> Any:
    return LlamaForSequenceClassification(_llama_config(dropout, **more))


def _llama_causal(dropout: float, **more: Any) -> Any:
    return LlamaForCausalLM(_llama_config(dropout, **more))


def _vit(dropout: float, **more: Any) -> Any:
    config = ViTConfig(**IMAGE, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **more)
    return ViTForImageClassification(config)


def _dinov2(dropout: float, **more: Any) -> Any:
    options = {key: value for key, value in IMAGE.items() if key != "intermediate_size"}
    config = Dinov2Config(
        **options, mlp_ratio=2, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **more
    )
    return Dinov2ForImageClassification(config)


_MAKERS: dict[str, Callable[..., Any]] = {
    "bert": _bert,
    "roberta": _roberta,
    "deberta": _deberta,
    "gpt2": _gpt2,
    "llama": _llama,
    "llama-causal": _llama_causal,
    "vit": _vit,
    "dinov2": _dinov2,
}
NAMES = list(_MAKERS)
CAUSAL = ("gpt2", "llama-causal")


def make(name: str, seed: int = 0, dropout: float = 0.0, **more: Any) -> Any:
    """The model `name` in fp32 and eval mode; `more` goes into its config. The global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _MAKERS[name](dropout, **more).eval()


def batch(name: str, rows: int = 4, seed: int = 1, tokens: int = 6) -> dict[str, torch.Tensor]:
    """A batch with labels that `make(name)` takes as `model(**batch)`."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % LABELS
    if name in ("vit", "dinov2"):
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=generator), "labels": labels}
    ids = torch.randint(3, VOCAB, (rows, tokens), generator=generator)
    if name in CAUSAL:
        return {"input_ids": ids, "labels": ids.clone()}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The model's logits in eval mode, without a graph."""
    training = model.training
    model.eval()
    with torch.no_grad():
        found = model(**inputs).logits
    model.train(training)
    return found


def train(
    model: Any, inputs: dict[str, torch.Tensor], steps: int, lr: float = 1e-2, only: str = "", **options: Any
) -> list[float]:
    """`steps` of plain fused AdamW over the trainable tensors (those with `only` in their name); the losses."""
    wanted = [p for name, p in model.named_parameters() if p.requires_grad and only in name]
    optimizer = torch.optim.AdamW(wanted, lr=lr, fused=True, **options)
    losses = []
    for _ in range(steps):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def stir(model: Any, size: float = 0.1, seed: int = 3, only: str = "lora_B") -> None:
    """Move the trainable tensors called `only` by normal noise: an adapter that does something, without training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and only in name:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * size
                parameter.add_(noise.to(parameter.dtype))
