"""A chain on a bf16 base is as near to the exact model as stock PEFT with the saved adapter: links are summed first."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import tunewise

LINKS = 8
IDS = torch.randint(0, 128, (8, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def base() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=128,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            initializer_range=0.15,
        )
        return LlamaForCausalLM(config).eval().bfloat16()


def divergence(exact: Tensor, other: Tensor) -> float:
    """Mean KL divergence of the predicted tokens."""
    p, q = exact.double().log_softmax(-1), other.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


# Columns are multiplied in bf16, as W is: their B is rounded once more than in stock PEFT's fp32 factors.
@pytest.mark.parametrize(
    ("name", "dropout", "most"), [("cola", 0, 1.02), ("rac", 0, 1.02), ("c3la", 0, 1.25), ("c3la", 0.1, 1.25)]
)
@torch.no_grad()
def test_links_are_rounded_once_on_a_bf16_base(name, dropout, most, base, tmp_path):
    """The exact model: W0 + dW in fp64. Rounding link by link, the divergence was 2 to 2.5 times that of stock PEFT."""
    model = tunewise.attach(copy.deepcopy(base), name, rank=4, targets="attention", dropout=dropout)
    generator = torch.Generator().manual_seed(3)
    for link in range(LINKS):
        if link:
            tunewise.restart(model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    stock = PeftModel.from_pretrained(copy.deepcopy(base), str(tunewise.save(model, tmp_path / "adapter"))).eval()
    exact = copy.deepcopy(base).double()
    for layer, delta in tunewise.delta(model).items():
        exact.get_submodule(layer).weight += delta.double()
    expected = exact(IDS).logits
    ours, theirs = (divergence(expected, each.eval()(IDS).logits) for each in (model, stock))
    assert 1e-5 < ours <= most * theirs
