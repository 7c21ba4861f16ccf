"""Trained parameters to the last one, on architectures in public use at rank 16; no weights: the meta device."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

import tunewise

CONFIGS: dict[str, Any] = {
    "roberta-base": lambda: RobertaForSequenceClassification(
        RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=2)
    ),
    "vit-base": lambda: ViTForImageClassification(ViTConfig(num_labels=10)),
    "deberta-v3-base": lambda: DebertaV2ForSequenceClassification(
        DebertaV2Config(
            vocab_size=128100,
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            intermediate_size=3072,
            relative_attention=True,
            position_biased_input=False,
            type_vocab_size=0,
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            norm_rel_ebd="layer_norm",
            position_buckets=256,
            max_relative_positions=-1,
            num_labels=2,
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config()),
    "tinyllama": lambda: LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=32000,
            hidden_size=2048,
            num_hidden_layers=22,
            num_attention_heads=32,
            num_key_value_heads=4,
            intermediate_size=5632,
            num_labels=4,
        )
    ),
}


def make(kind: str) -> Any:
    with torch.device("meta"):
        return CONFIGS[kind]()


COUNTS = [
    ("roberta-base", "qv", {"fft": 124_647_170, "lora": 1_181_954, "asym": 887_042, "cla": 887_042}),
    ("roberta-base", "all-linear", {"lora": 3_246_338, "asym": 1_919_234, "cla": 1_919_234}),
    ("vit-base", "qv", {"fft": 85_806_346, "lora": 597_514, "asym": 302_602, "cla": 302_602}),
    ("deberta-v3-base", "qv", {"fft": 184_423_682, "lora": 1_181_954, "asym": 887_042, "cla": 887_042}),
    ("gpt2", "qv", {"fft": 124_439_808, "lora": 589_824, "asym": 294_912, "cla": 294_912}),
    ("tinyllama", "qv", {"fft": 1_034_520_576, "lora": 2_260_992, "asym": 819_200, "cla": 819_200}),
]
SAME = {
    "lora": ["lora+", "rslora", "cola"],
    "asym": ["rac"],
    "cla": ["r-cla", "c3la", "r-c3la", "paca", "d-paca", "c-paca"],
}


@pytest.mark.parametrize(
    ("kind", "targets", "name", "expected"),
    [
        pytest.param(kind, targets, name, count, id=f"{kind}-{targets}-{name}")
        for kind, targets, counts in COUNTS
        for name, count in counts.items()
    ],
)
def test_the_trained_parameters_are_these(kind, targets, name, expected):
    model = tunewise.attach(make(kind), name, rank=16, targets=targets)
    assert all(p.is_meta for p in model.parameters())
    assert tunewise.trainable_parameters(model) == expected


@functools.cache
def vit_count(name: str) -> int:
    return tunewise.trainable_parameters(tunewise.attach(make("vit-base"), name, rank=16))


@pytest.mark.parametrize(("name", "like"), [(name, like) for like, names in SAME.items() for name in names])
def test_methods_of_one_kind_train_as_many(name, like):
    assert vit_count(name) == vit_count(like)


def test_the_head_alone():
    assert vit_count("head") == 10 * 768 + 10


def test_rows_train_a_alone():
    """r x inputs for each of 24 layers, and the head."""
    assert vit_count("cla-rows") == 24 * 16 * 768 + 7690


def test_a_chain_trains_one_links_parameters():
    model = tunewise.attach(make("vit-base"), "c3la", rank=16)
    for _ in range(3):
        tunewise.restart(model)
    assert tunewise.trainable_parameters(model) == vit_count("cla")
