"""Adapters in some blocks alone: the forecast is of those."""

from __future__ import annotations

import pytest
from transformers import BertConfig, LlamaConfig

from tunewise.spec import MethodSpec
from tunewise.study.forecast import forecast_methods
from tunewise.tasks.text import TextClassification

CONFIGS = {
    "bert": BertConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, vocab_size=50),
    "llama": LlamaConfig(
        hidden_size=32,
        num_hidden_layers=12,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=50,
    ),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_the_last_block_alone_has_its_share_of_the_parameters_and_needs_less_memory(family: str) -> None:
    """The adapter of one block of L is the L-th part of that of all, and nothing is kept below it; also where the depth
    of a model is extrapolated from shallow ones otherwise."""
    config = CONFIGS[family]
    head = TextClassification.make_head(("a", "b"))
    everywhere, last = (
        forecast_methods(
            config, TextClassification, head, [MethodSpec(name="lora", rank=4, layers=layers)], batch=8, length=32
        )[0]
        for layers in (None, "last 1")
    )
    blocks = config.num_hidden_layers
    one_block = 2 * 4 * (32 + 32)  # query and value, rank 4
    assert everywhere.trainable_parameters - last.trainable_parameters == (blocks - 1) * one_block
    assert last.memory_bytes < everywhere.memory_bytes
