"""Methods of the PEFT library stand in a comparison like any other row."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import BertConfig, BertForSequenceClassification

import tunewise
from tunewise.catalog import get_method
from tunewise.errors import ModelError, SpecError
from tunewise.peft_methods import PEFT_METHODS
from tunewise.spec import MethodSpec, StudySpec
from tunewise.training.build import count_parameters

WITHOUT_RANK = {"ia3", "ln_tuning"}
MOVED_AT_START = {"c3a", "fourierft", "vblora"}
IDS = torch.randint(0, 60, (6, 9), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture(scope="module")
def base() -> BertForSequenceClassification:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertForSequenceClassification(
            BertConfig(
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                vocab_size=60,
                num_labels=3,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        ).eval()


def attach(base, name: str, rank: int | None = 4):
    options = {"peft_options": {"total_step": 50}} if name == "adalora" else {}
    rank = None if name in WITHOUT_RANK else rank
    return tunewise.attach(copy.deepcopy(base), f"peft:{name}", rank=rank, seed=1, **options)


@torch.no_grad()
def moved_outputs(base, model) -> bool:
    """Whether the outputs differ by more than rounding."""
    before, after = base(IDS).logits, model.eval()(IDS).logits
    return float((after - before).abs().max()) > 2e-7


def test_every_name_is_one_that_peft_has() -> None:
    known = {kind.value.lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert {name for name, row in PEFT_METHODS.items() if not row.is_lora} <= known


@pytest.mark.parametrize("name", PEFT_METHODS)
def test_trains_counts_saves_and_loads(name: str, base, tmp_path) -> None:
    model = attach(base, name)
    assert tunewise.attachment(model).method.name == f"peft:{name}"
    facts = count_parameters(model)
    assert facts.parameters == pytest.approx(sum(p.numel() for p in base.parameters()), abs=2 * 2)
    assert facts.head == 64 * 3 + 3
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
    config = attach(base, "adalora", rank).peft_config["default"]
    assert (config.target_r, config.init_r) == (rank, 3 * rank // 2)


@pytest.mark.parametrize("name", PEFT_METHODS)
def test_a_rank_decides_how_much_is_trained_or_is_refused(name: str, base) -> None:
    """Each of these ranks trains another number of parameters, or one clear line says why it can't be given."""
    counts = []
    for rank in (2, 4, 8):
        options = {"peft_options": {"total_step": 50}} if name == "adalora" else {}
        try:
            model = tunewise.attach(copy.deepcopy(base), f"peft:{name}", rank=rank, **options)
            counts.append(tunewise.trainable_parameters(model))
        except (SpecError, ModelError) as error:
            assert f"peft:{name}" in str(error) and "rank" in str(error) and "\n" not in str(error)
    assert len(counts) == len(set(counts)) == {"lokr": 2, "road": 2}.get(name, 0 if name in WITHOUT_RANK else 3)


@pytest.mark.parametrize(
    ("name", "rank", "expected"),
    [
        ("fourierft", 8, {"n_frequency": 1000}),
        ("fourierft", 2, {"n_frequency": 250}),
        ("waveft", 8, {"n_frequency": 2592}),
        ("c3a", 8, {"block_size": 8}),
        ("c3a", 16, {"block_size": 4}),
        ("boft", 16, {"boft_block_size": 16}),
        ("oft", 4, {"r": 4, "oft_block_size": 16}),
        ("randlora", 32, {"r": 32, "randlora_alpha": 640}),
        ("road", None, {"variant": "road_1"}),
        ("road", 4, {"variant": "road_4"}),
        ("vblora", 2, {"r": 2, "vector_length": 64}),
    ],
)
def test_a_rank_is_the_methods_own_knob(name: str, rank: int, expected: dict, base) -> None:
    """In layers of 64 x 64; rank 8 (randlora: 32) is the default of PEFT."""
    model = attach(base, name, rank)
    layer = model.get_base_model().bert.encoder.layer[0].attention.self.query
    values = vars(model.peft_config["default"]) | (
        {key: getattr(layer, key)["default"] for key in expected} if name == "oft" else {}
    )
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize("name", PEFT_METHODS)
def test_attaching_is_the_identity_or_a_warning_says_that_it_is_not(name: str, base) -> None:
    """Measured with PEFT's own forward; hra reflects in pairs, so an odd rank is left over."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = attach(base, name, 4)
    assert moved_outputs(base, model) == (name in MOVED_AT_START)
    said = [
        str(warning.message) for warning in caught if "attaching changes the model's outputs" in str(warning.message)
    ]
    assert [f"'peft:{name}'" in words for words in said] == [True] * (name in MOVED_AT_START)


def test_hra_with_an_odd_rank_does_not_start_at_the_base_model(base) -> None:
    with pytest.warns(UserWarning, match="'peft:hra' starts at a random update"):
        assert moved_outputs(base, attach(base, "hra", 3))


def test_a_rank_of_a_method_without_one_is_refused_in_a_spec_and_left_out_beside_others() -> None:
    with pytest.raises(SpecError, match="'peft:ia3' has no rank"):
        MethodSpec(name="peft:ia3", rank=8)
    with pytest.raises(SpecError, match="'peft:ia3' has no rank"):
        StudySpec(model="m", data="d", methods="peft:ia3,peft:ln_tuning", rank=2)
    study = StudySpec(model="m", data="d", methods="lora,peft:ia3,peft:road", rank=2)
    assert [method.content()["rank"] for method in study.methods] == [2, None, 2]
    again = StudySpec.model_validate_json(study.model_dump_json())
    assert [method.content()["rank"] for method in again.methods] == [2, None, 2]
    assert len(StudySpec(model="m", data="d", methods="peft:ia3,lora", rank=[2, 4]).methods) == 3


def test_ln_tuning_trains_the_norms_of_the_blocks_and_nothing_else(base) -> None:
    """Each of the two blocks has two norms with 64 weights and 64 biases."""
    model = attach(base, "ln_tuning")
    trained = [name for name, p in model.named_parameters() if p.requires_grad and "classifier" not in name]
    assert trained and all("LayerNorm" in name and ".layer." in name for name in trained)
    assert tunewise.trainable_parameters(model) == 2 * 2 * 2 * 64 + 64 * 3 + 3
    assert tunewise.delta(model) == {}
    last = tunewise.attach(copy.deepcopy(base), "peft:ln_tuning", layers="last 1")
    assert tunewise.trainable_parameters(last) == 2 * 2 * 64 + 64 * 3 + 3
