"""Methods of the PEFT library stand in a comparison like any other row."""

from __future__ import annotations

import copy

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import BertConfig, BertForSequenceClassification

import tunewise
from tunewise.catalog import PEFT_LORA_OPTIONS, PEFT_TYPES, get_method
from tunewise.errors import SpecError
from tunewise.training.build import count_parameters

# Those whose defaults (block sizes of 64 and more) don't fit a width of 32.
TOO_NARROW = {"c3a", "road", "vblora", "waveft"}
IDS = torch.randint(0, 60, (6, 9), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture(scope="module")
def base() -> BertForSequenceClassification:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertForSequenceClassification(
            BertConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                vocab_size=60,
                num_labels=3,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        ).eval()


def attach(base, name: str):
    options = {"peft_options": {"total_step": 50}} if name == "adalora" else {}
    return tunewise.attach(copy.deepcopy(base), f"peft:{name}", rank=4, seed=1, **options)


def test_every_name_is_one_that_peft_has() -> None:
    known = {kind.value.lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert set(PEFT_TYPES) <= known


@pytest.mark.parametrize("name", sorted({*PEFT_LORA_OPTIONS, *PEFT_TYPES} - TOO_NARROW))
def test_trains_counts_saves_and_loads(name: str, base, tmp_path) -> None:
    model = attach(base, name)
    assert tunewise.attachment(model).method.name == f"peft:{name}"
    facts = count_parameters(model)
    assert facts.parameters == pytest.approx(sum(p.numel() for p in base.parameters()), abs=2 * 2)
    assert facts.head == 32 * 3 + 3
    assert 0 < facts.adapter < facts.parameters
    optimizer = tunewise.optimizer(model, lr=1e-2)
    model.train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(3):
        model(IDS, labels=LABELS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters() if not p.requires_grad)
    assert any(not torch.equal(before[n], p) for n, p in model.named_parameters() if "classifier" not in n)
    with torch.no_grad():
        expected = model.eval()(IDS).logits
        tunewise.save(model, tmp_path / "a")
        again = tunewise.load(copy.deepcopy(base), tmp_path / "a").eval()(IDS).logits
    assert (again - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["dora", "vera", "lora"])
def test_delta_is_merged_minus_base(name: str, base) -> None:
    model = attach(base, name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    deltas = tunewise.delta(model)
    merged = dict(model.merge_and_unload().named_modules())
    plain = dict(base.named_modules())
    assert deltas
    for layer, dw in deltas.items():
        assert (merged[layer].weight - plain[layer].weight - dw).abs().max() <= 1e-6
        assert dw.abs().max() > 0


def test_peft_lora_is_our_lora_in_distribution_and_count(base) -> None:
    ours, theirs = tunewise.attach(copy.deepcopy(base), "lora", rank=4), attach(base, "lora")
    assert tunewise.trainable_parameters(ours) == tunewise.trainable_parameters(theirs)


def test_seed_decides_and_the_global_generator_is_left_alone(base) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two = attach(base, "dora"), attach(base, "dora")
    assert torch.equal(torch.rand(3), expected)
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_mistakes_are_named() -> None:
    with pytest.raises(SpecError, match="'dora'"):
        get_method("peft:doraa")
    model = BertForSequenceClassification(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
                                                     intermediate_size=64, vocab_size=60))  # fmt: skip
    with pytest.raises(SpecError, match="no option 'rr'"):
        tunewise.attach(model, "peft:dora", peft_options={"rr": 3})
    with pytest.raises(SpecError, match="peft_options"):
        tunewise.attach(model, "cla", peft_options={"r": 3})


@pytest.mark.parametrize("rank", [2, 8, 16])
def test_adalora_keeps_the_rank_and_starts_with_half_as_many_more(rank: int, base) -> None:
    model = tunewise.attach(copy.deepcopy(base), "peft:adalora", rank=rank, peft_options={"total_step": 50})
    config = model.peft_config["default"]
    assert (config.target_r, config.init_r) == (rank, 3 * rank // 2)
    factors = [p for name, p in model.named_parameters() if "lora_A" in name]
    assert {len(factor) for factor in factors} == {3 * rank // 2}
