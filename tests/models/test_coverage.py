"""The share of the block weights that is adapted: against parameter counts, on mixtures of experts too."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import tunewise
from command_line import invoke
from contracts import models
from tunewise.models.coverage import measure_coverage
from tunewise.models.layers import find_targets

BASE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "num_experts_per_tok": 2,
}
EXPERTS = {
    "mixtral": {**BASE, "num_local_experts": 4},
    "qwen2_moe": {**BASE, "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**BASE, "num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8},
    "gpt_oss": {**BASE, "num_local_experts": 4, "head_dim": 8},
    "deepseek_v2": {
        **BASE,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 12,
        "v_head_dim": 10,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
}


def make(kind):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **EXPERTS[kind]))


@pytest.mark.parametrize("kind", EXPERTS)
def test_experts_that_are_no_linear_layers_are_named_with_their_share(kind):
    """Independent count: every block parameter of two or more dimensions, but biases."""
    model = make(kind)
    weights = {
        name: p.numel()
        for name, p in model.named_parameters()
        if ".layers." in name and p.dim() > 1 and not name.endswith("bias")
    }
    targets = find_targets(model, "all-linear")
    adapted = sum(weights[f"{target.name}.weight"] for target in targets)
    coverage = measure_coverage(model, targets)
    assert (coverage.weights, coverage.adapted) == (sum(weights.values()), adapted)
    assert coverage.share == pytest.approx(adapted / sum(weights.values()))
    assert list(coverage.left_out)[:2] == ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    experts = sum(count for name, count in weights.items() if "experts.gate_up_proj" in name)
    assert coverage.left_out["mlp.experts.gate_up_proj"] == experts
    assert coverage.adapted + sum(coverage.left_out.values()) == coverage.weights
    with pytest.warns(UserWarning, match=r"'all-linear': .* adapted; not mlp.experts.gate_up_proj"):
        tunewise.attach(model, "cla", rank=2, targets="all-linear")


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_all_linear_is_everything_in_a_dense_model_and_qv_a_part_also_with_an_adapter_on_it(kind):
    model = models.make(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        attached = tunewise.attach(models.make(kind), "lora", rank=2, targets="all-linear")
    for targets, expected in (("all-linear", 1.0), ("qv", measure_coverage(model, find_targets(model, "qv")).share)):
        found = find_targets(attached.get_base_model(), targets)
        assert measure_coverage(attached.get_base_model(), found).share == pytest.approx(expected)
    assert expected < 0.5


def test_a_gate_with_one_output_is_left_out_of_all_linear_at_a_higher_rank_and_named():
    model = make("qwen2_moe")
    with pytest.warns(UserWarning, match="'all-linear': shared_expert_gate left out, with fewer outputs than rank 8"):
        names = {t.name for t in tunewise.attachment(tunewise.attach(model, "lora", targets="all-linear")).targets}
    assert "model.layers.0.mlp.shared_expert.up_proj" in names
    assert not any(name.endswith("shared_expert_gate") for name in names)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitting = tunewise.attach(make("qwen2_moe"), "lora", rank=1, targets="all-linear")
    assert any(t.name.endswith("shared_expert_gate") for t in tunewise.attachment(fitting).targets)
    assert not any("left out" in str(warning.message) for warning in caught)


def test_attention_in_bare_parameters_is_named_with_its_share():
    """XLNet's q, k, v, o and r are no layers: 5 x 32 x 32 of 5 x 32 x 32 + 2 x 32 x 48 + 2 x 32 weights a block."""
    config = AutoConfig.for_model("xlnet", vocab_size=64, d_model=32, n_layer=2, n_head=4, d_inner=48)
    model = AutoModelForCausalLM.from_config(config)
    coverage = measure_coverage(model, find_targets(model, "all-linear"))
    assert coverage.weights == 2 * (5 * 32 * 32 + 2 * 32 * 48 + 2 * 32)
    assert coverage.adapted == 2 * 2 * 32 * 48
    assert {name: coverage.left_out[f"rel_attn.{name}"] for name in "qkvor"} == dict.fromkeys("qkvor", 2 * 32 * 32)
    with pytest.warns(UserWarning, match=r"'all-linear': 37.2% of the block weights are adapted; not rel_attn.q"):
        tunewise.attach(model, "lora", rank=2, targets="all-linear")


@pytest.mark.parametrize("kind", EXPERTS)
def test_a_plan_of_experts_says_what_is_adapted(kind, tmp_path, monkeypatch, capsys):
    AutoConfig.for_model(kind, **EXPERTS[kind]).save_pretrained(tmp_path)
    flags = ["--model", str(tmp_path), "--task", "causal", "--methods", "lora", "--targets", "all-linear"]
    assert invoke(monkeypatch, "plan", *flags, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert "of the block weights are adapted; not mlp.experts.gate_up_proj" in row["coverage"]
    assert invoke(monkeypatch, "plan", *flags) == 0
    assert row["coverage"] in " ".join(capsys.readouterr().out.split())
