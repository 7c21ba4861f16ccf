"""Which layers the words mean on each architecture, and what is said where a name means nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import tunewise
from contracts import models
from tunewise.errors import ModelError
from tunewise.models.fused import Part
from tunewise.models.head import head_modules
from tunewise.models.layers import find_targets

OTHERS = {
    "albert": lambda: AlbertForSequenceClassification(
        AlbertConfig(
            vocab_size=64,
            embedding_size=16,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=40,
        )
    ),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=64, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40)
    ),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=48,
            max_position_embeddings=40,
            word_embed_proj_dim=32,
        )
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    ),
}


def make(kind: str) -> nn.Module:
    return OTHERS[kind]().eval() if kind in OTHERS else models.make(kind)


def leaves(kind: str, word: str) -> dict[str, int]:
    """Leaf name -> how many layers of it `word` means."""
    found: dict[str, int] = {}
    for target in find_targets(make(kind), word):
        leaf = target.name.rpartition(".")[2]
        found[leaf] = found.get(leaf, 0) + 1
    return found


# Two blocks each; T5 has two in the encoder and two in the decoder, with self- and cross-attention there.
EXPECTED = {
    "bert": (
        {"query": 2, "value": 2},
        {"query": 2, "key": 2, "value": 2, "dense": 2},
        {"query": 2, "key": 2, "value": 2, "dense": 6},
    ),
    "roberta": (
        {"query": 2, "value": 2},
        {"query": 2, "key": 2, "value": 2, "dense": 2},
        {"query": 2, "key": 2, "value": 2, "dense": 6},
    ),
    "deberta": (
        {"query_proj": 2, "value_proj": 2},
        {"query_proj": 2, "key_proj": 2, "value_proj": 2, "dense": 2},
        {"query_proj": 2, "key_proj": 2, "value_proj": 2, "dense": 6},
    ),
    "gpt2": ({"c_attn": 2}, {"c_attn": 2, "c_proj": 2}, {"c_attn": 2, "c_proj": 4, "c_fc": 2}),
    "llama": (
        {"q_proj": 2, "v_proj": 2},
        {"q_proj": 2, "k_proj": 2, "v_proj": 2, "o_proj": 2},
        {"q_proj": 2, "k_proj": 2, "v_proj": 2, "o_proj": 2, "gate_proj": 2, "up_proj": 2, "down_proj": 2},
    ),
    "vit": (
        {"q_proj": 2, "v_proj": 2},
        {"q_proj": 2, "k_proj": 2, "v_proj": 2, "o_proj": 2},
        {"q_proj": 2, "k_proj": 2, "v_proj": 2, "o_proj": 2, "fc1": 2, "fc2": 2},
    ),
    "dinov2": (
        {"q_proj": 2, "v_proj": 2},
        {"q_proj": 2, "k_proj": 2, "v_proj": 2, "o_proj": 2},
        {"q_proj": 2, "k_proj": 2, "v_proj": 2, "o_proj": 2, "fc1": 2, "fc2": 2},
    ),
    "albert": (
        {"query": 1, "value": 1},
        {"query": 1, "key": 1, "value": 1, "dense": 1},
        {"query": 1, "key": 1, "value": 1, "dense": 1, "ffn": 1, "ffn_output": 1},
    ),
    "distilbert": (
        {"q_lin": 2, "v_lin": 2},
        {"q_lin": 2, "k_lin": 2, "v_lin": 2, "out_lin": 2},
        {"q_lin": 2, "k_lin": 2, "v_lin": 2, "out_lin": 2, "lin1": 2, "lin2": 2},
    ),
    "opt": (
        {"q_proj": 2, "v_proj": 2},
        {"q_proj": 2, "k_proj": 2, "v_proj": 2, "out_proj": 2},
        {"q_proj": 2, "k_proj": 2, "v_proj": 2, "out_proj": 2, "fc1": 2, "fc2": 2},
    ),
    "t5": (
        {"q": 6, "v": 6},
        {"q": 6, "k": 6, "v": 6, "o": 6},
        {"q": 6, "k": 6, "v": 6, "o": 6, "wi": 4, "wo": 4},
    ),
}


@pytest.mark.parametrize("kind", list(EXPECTED))
def test_the_words_mean_the_same_layers_on_every_architecture(kind):
    """qv: query and value. attention: with key and output. all-linear: every linear of the repeated blocks."""
    assert tuple(leaves(kind, word) for word in ("qv", "attention", "all-linear")) == EXPECTED[kind]


@pytest.mark.parametrize("kind", list(EXPECTED))
def test_targets_come_in_the_models_order_with_their_shapes(kind):
    model = make(kind)
    order = [name for name, _ in model.named_modules()]
    found = find_targets(model, "all-linear")
    assert [t.name for t in found] == sorted((t.name for t in found), key=order.index)
    for target in found:
        shape = tuple(model.get_submodule(target.name).weight.shape)
        assert (target.out_features, target.in_features) == (shape[::-1] if kind == "gpt2" else shape)
        assert target.parts == (Part(0, target.out_features),) and not target.fused


@pytest.mark.parametrize("kind", list(EXPECTED))
@pytest.mark.parametrize("name", ["cla", "r-cla", "lora"])
def test_every_layer_that_all_linear_names_can_be_adapted_and_trained(kind, name):
    """Outputs unchanged to 1e-6; after one step every B has moved."""
    model = make(kind)
    inputs = {"input_ids": torch.arange(3, 15).reshape(2, 6)}
    if kind in models.NAMES:
        inputs = models.batch(kind)
    elif kind == "t5":
        inputs["labels"] = inputs["input_ids"]
    else:
        inputs["labels"] = inputs["input_ids"] if kind == "opt" else torch.tensor([0, 1])
    with torch.no_grad():
        before = model(**inputs).logits
    adapted = tunewise.attach(model, name, rank=4, targets="all-linear")
    with torch.no_grad():
        torch.testing.assert_close(adapted(**inputs).logits, before, rtol=0, atol=1e-6)
    start = {key: p.detach().clone() for key, p in adapted.named_parameters() if "lora_B" in key}
    models.train(adapted, inputs, steps=1)
    assert not any(torch.equal(adapted.get_parameter(key), value) for key, value in start.items())


# --- fused projections -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "parts"),
    [
        ("qv", ((0, 32), (64, 96))),
        (["query"], ((0, 32),)),
        (["key"], ((32, 64),)),
        (["value", "query"], ((0, 32), (64, 96))),
        (["query", "key", "value"], ((0, 32), (32, 64), (64, 96))),
        (["c_attn"], ((0, 96),)),
        (["query", "c_attn"], ((0, 96),)),
        (["c_attn", "query"], ((0, 96),)),
        ("attention", ((0, 96),)),
    ],
)
def test_of_a_fused_projection_the_asked_slices_are_adapted(asked, parts):
    found = [t for t in find_targets(models.make("gpt2"), asked) if t.name.endswith("c_attn")]
    assert [t.parts for t in found] == [tuple(Part(*part) for part in parts)] * 2


@pytest.mark.parametrize("name", ["cla", "paca", "lora", "rac"])
def test_the_other_slices_are_not_touched(name):
    """GPT-2's keys: dW is zero there, to the bit, after training q and v."""
    model = tunewise.attach(models.make("gpt2"), name, rank=4)
    models.train(model, models.batch("gpt2"), steps=2)
    for dense in tunewise.delta(model).values():
        assert not dense[32:64].any()
        assert dense[:32].any() and dense[64:].any()


SLICES = [
    ["query"],
    ["query", "value"],
    ["key", "c_fc"],
]


@pytest.mark.parametrize("targets", SLICES)
@pytest.mark.parametrize("name", ["cla", "lora"])
def test_any_slices_are_saved_and_loaded_to_train_on(name, targets, tmp_path):
    """1e-5."""
    model = tunewise.attach(models.make("gpt2"), name, rank=4, targets=targets)
    models.stir(model)
    tunewise.save(model, tmp_path / "adapter")
    loaded = tunewise.load(models.make("gpt2"), tmp_path / "adapter", trainable=True)
    inputs = models.batch("gpt2")
    torch.testing.assert_close(models.logits(loaded, inputs), models.logits(model, inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["rslora"])
def test_slices_and_whole_layers_have_the_methods_scale_alike(name):
    """alpha / sqrt(r) on both."""
    model = tunewise.attach(models.make("gpt2"), name, rank=4, alpha=8, targets=["query", "c_proj"])
    scales = {m.scaling["default"] for m in model.modules() if isinstance(getattr(m, "scaling", None), dict)}
    assert scales == {4.0}


# --- names -----------------------------------------------------------------------------------------------------------


def test_names_ends_paths_and_patterns_are_found():
    model = models.make("bert")
    every = [t.name for t in find_targets(model, "all-linear")]
    query = [n for n in every if n.endswith(".query")]
    assert [t.name for t in find_targets(model, ["query"])] == query
    assert [t.name for t in find_targets(model, "query, value")] == [t.name for t in find_targets(model, "qv")]
    inner = [n for n in every if n.endswith("attention.output.dense")]
    assert [t.name for t in find_targets(model, ["attention.output.dense"])] == inner
    first = "bert.encoder.layer.0.attention.self.query"
    assert [t.name for t in find_targets(model, [first])] == [first]
    assert [t.name for t in find_targets(model, "bert.encoder.layer.1.*")] == [n for n in every if ".layer.1." in n]
    assert [t.name for t in find_targets(model, ["query", first])] == query


def test_a_role_is_found_where_no_layer_has_its_name():
    assert [t.name.rpartition(".")[2] for t in find_targets(models.make("llama"), ["query"])] == ["q_proj"] * 2
    assert [t.name.rpartition(".")[2] for t in find_targets(models.make("deberta"), ["key"])] == ["key_proj"] * 2


@pytest.mark.parametrize(
    ("kind", "asked", "near"),
    [
        ("bert", "quary", "'query'"),
        ("bert", ["query", "vlaue"], "'value'"),
        ("llama", "q_porj", "'q_proj'"),
        ("gpt2", "c_attm", "'c_attn'"),
        ("bert", "all_linear", "'all-linear'"),
        ("vit", "qvv", "'qv'"),
    ],
)
def test_an_unknown_target_lists_the_nearest_names(kind, asked, near):
    with pytest.raises(ModelError, match=near):
        find_targets(models.make(kind), asked)


def test_a_name_near_nothing_lists_the_choices():
    with pytest.raises(ModelError, match=r"'zzz'.*choose one of: .*query"):
        find_targets(models.make("bert"), "zzz")


@pytest.mark.parametrize("asked", ["", ["query", ""], "query,"])
def test_an_empty_name_is_refused(asked):
    with pytest.raises(ModelError, match="empty name"):
        find_targets(models.make("bert"), asked)


def test_no_names_at_all_are_refused():
    with pytest.raises(ModelError):
        find_targets(models.make("bert"), [])


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ModelError, match="no linear layer"):
        find_targets(nn.Sequential(nn.Embedding(3, 4)), "qv")


def test_a_model_without_the_words_layers_says_how_to_name_some():
    with pytest.raises(ModelError, match=r"targets 'qv'.*name them"):
        find_targets(nn.Sequential(nn.Linear(3, 4)), "qv")


def test_an_adapted_model_has_the_same_targets():
    plain, adapted = models.make("llama"), tunewise.attach(models.make("llama"), "cla", rank=4)
    for word in ("qv", "attention", "all-linear"):
        assert find_targets(plain, word) == find_targets(adapted.get_base_model(), word)


@pytest.mark.parametrize(("rank", "name"), [(33, "cla"), (33, "paca"), (17, "lora"), (33, "cla-rows"), (0, "cla")])
def test_a_rank_beyond_a_layer_is_refused_by_name(rank, name):
    """Llama's v has 16 outputs, its q 32; columns may be as many as there are inputs."""
    with pytest.raises(tunewise.TunewiseError, match="rank"):
        tunewise.attach(models.make("llama"), name, rank=rank, targets=["v_proj" if name == "lora" else "q_proj"])


def test_a_column_method_may_train_every_column():
    """r = m: dW is free; 1e-6 unchanged, and all of W moves."""
    model, inputs = tunewise.attach(models.make("llama"), "r-cla", rank=32), models.batch("llama")
    torch.testing.assert_close(
        models.logits(model, inputs), models.logits(models.make("llama"), inputs), rtol=0, atol=1e-6
    )
    models.train(model, inputs, steps=1)
    assert all(bool(dense.all()) for dense in tunewise.delta(model).values())


# --- heads -----------------------------------------------------------------------------------------------------------

HEADS = {
    "bert": ["classifier"],
    "roberta": ["classifier"],
    "deberta": ["pooler", "classifier"],
    "gpt2": [],
    "llama": ["score"],
    "llama-causal": [],
    "vit": ["classifier"],
    "dinov2": ["classifier"],
    "albert": ["classifier"],
    "distilbert": ["pre_classifier", "classifier"],
    "opt": [],
    "t5": [],
}


@pytest.mark.parametrize("kind", list(HEADS))
def test_the_head_is_all_that_is_not_backbone_and_no_language_model_head(kind):
    assert head_modules(make(kind)) == HEADS[kind]


@pytest.mark.parametrize("name", ["lora", "cla", "head"])
@pytest.mark.parametrize("kind", [kind for kind, head in HEADS.items() if head])
def test_the_head_is_trained_whole_in_every_method_and_nothing_else_of_the_base(kind, name):
    model = tunewise.attach(make(kind), name, rank=4)
    expected = sum(p.numel() for child in HEADS[kind] for p in make(kind).get_submodule(child).parameters())
    found = sum(p.numel() for key, p in model.named_parameters() if p.requires_grad and "lora_" not in key)
    assert found == expected
