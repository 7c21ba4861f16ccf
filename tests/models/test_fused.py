"""Which rows of a fused projection are queries, keys and values: shown by what scaling them does to attention."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.pytorch_utils import Conv1D

import tunewise
from command_line import invoke
from tunewise.errors import ModelError
from tunewise.models.fused import fused_parts, looks_fused
from tunewise.models.layers import find_targets, linear_layers

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
EMBED = {"vocab_size": 64, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 32}
FALCON = {**SIZES, "alibi": False}
LATENT = {
    **SIZES,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, object]]] = {
    "gpt2": ("gpt2", EMBED),
    "openai-gpt": ("openai-gpt", EMBED),
    "gpt_bigcode, one key for all heads": ("gpt_bigcode", {**EMBED, "multi_query": True}),
    "gpt_bigcode, head by head": ("gpt_bigcode", {**EMBED, "multi_query": False}),
    "gpt_neox": ("gpt_neox", {**SIZES, "intermediate_size": 48}),
    "bloom": ("bloom", {"vocab_size": 64, "hidden_size": 32, "n_head": 4, "n_layer": 2}),
    "falcon 7b": ("falcon", {**FALCON, "multi_query": True, "new_decoder_architecture": False}),
    "falcon 1b": ("falcon", {**FALCON, "multi_query": False, "new_decoder_architecture": False}),
    "falcon 40b": ("falcon", {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "phi3": ("phi3", {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0}),
    "modernbert": ("modernbert", {**SIZES, "intermediate_size": 48, "pad_token_id": 0}),
    "mpt": ("mpt", {"vocab_size": 64, "d_model": 32, "n_heads": 4, "n_layers": 2}),
    "codegen": ("codegen", {**EMBED, "rotary_dim": 4}),
    "deepseek_v2": ("deepseek_v2", LATENT),
    "deepseek_v3": ("deepseek_v3", LATENT),
}


def tiny(name: str) -> nn.Module:
    kind, options = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **options)).eval()
    for parameter in model.parameters():  # biases start at zero, and attention almost uniform
        if parameter.dim() <= 2:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def fused_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: layer
        for name, layer in linear_layers(model).items()
        if looks_fused(name.rpartition(".")[2]) and "kv_a_proj" not in name
    }


@torch.no_grad()
def attention_output(model: nn.Module, name: str, factors: dict[str, float]) -> torch.Tensor:
    """The output of the attention module around layer `name`, with the rows of these roles scaled."""
    layer = model.get_submodule(name)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    rows = layer.nf if isinstance(layer, Conv1D) else layer.out_features
    parts = fused_parts(model, name, rows)
    for role, factor in factors.items():
        weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        weight[parts[role].indices] *= factor
        if layer.bias is not None:
            layer.bias[parts[role].indices] *= factor
    seen = []
    attention = model.get_submodule(name.rpartition(".")[0])
    hook = attention.register_forward_hook(lambda _, __, output: seen.append(output))
    model(input_ids=torch.arange(1, 11)[None])
    hook.remove()
    layer.load_state_dict(before)
    return seen[0][0] if isinstance(seen[0], tuple | list) else seen[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_attention_is_linear_in_the_value_rows_and_in_no_others(name):
    """f(c), with the value rows scaled by c, is affine: f(3) - f(0) = 3 (f(1) - f(0))."""
    model = tiny(name)
    layer = next(iter(fused_layers(model)))
    at = {c: attention_output(model, layer, {"value": c}) for c in (0.0, 1.0, 3.0)}
    assert not torch.allclose(at[0.0], at[1.0], atol=1e-3)
    torch.testing.assert_close(at[3.0] - at[0.0], 3 * (at[1.0] - at[0.0]), atol=1e-4, rtol=1e-4)
    without_values = attention_output(model, layer, {"value": 0.0, "key": 2.0})
    torch.testing.assert_close(without_values, at[0.0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "deepseek" not in name])
def test_queries_and_keys_meet_in_a_product(name):
    """Queries scaled by 2 and keys by 1/2 change nothing; queries alone do."""
    model = tiny(name)
    layer = next(iter(fused_layers(model)))
    plain = attention_output(model, layer, {})
    torch.testing.assert_close(attention_output(model, layer, {"query": 2.0, "key": 0.5}), plain, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(attention_output(model, layer, {"query": 2.0}), plain, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("method", ["lora", "c3la", "paca", "cola"])
def test_the_default_targets_are_adapted_in_these_rows_alone(name, method, tmp_path):
    model = tiny(name)
    inputs = {"input_ids": torch.arange(1, 11)[None]}
    with torch.no_grad():
        plain = model(**inputs)[0]
    attached = tunewise.attach(model, method, rank=2)
    targets = {t.name: t for t in tunewise.attachment(attached).targets}
    assert {name.rpartition(".")[2] for name in targets} & {n.rpartition(".")[2] for n in fused_layers(tiny(name))}
    with torch.no_grad():
        torch.testing.assert_close(attached(**inputs)[0], plain, atol=1e-6, rtol=0)
    optimizer = tunewise.optimizer(attached, lr=1e-2)
    for step in range(2):
        if step and method in ("c3la", "cola"):
            tunewise.restart(attached)
        attached(**inputs)[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for layer, delta in tunewise.delta(attached).items():
        adapted = torch.zeros(len(delta), dtype=torch.bool)
        for part in targets[layer].parts:
            adapted[part.indices] = True
            assert delta[part.indices].abs().sum() > 0 or step == 0
        assert not delta[~adapted].any()
    with torch.no_grad():
        trained = attached(**inputs)[0]
        assert not torch.allclose(trained, plain, atol=1e-4)
        fresh = tunewise.load(tiny(name), tunewise.save(attached, tmp_path / "adapter")).eval()
        torch.testing.assert_close(fresh(**inputs)[0], trained, atol=2e-5, rtol=1e-4)


def test_cross_attention_of_gpt2_has_keys_and_values_in_c_attn_and_queries_in_q_attn():
    config = AutoConfig.for_model("gpt2", **EMBED, add_cross_attention=True)
    targets = {t.name: t.parts for t in find_targets(AutoModel.from_config(config), "qv")}
    assert targets["h.0.crossattention.q_attn"] == ((0, 32, 0, 1),)
    assert targets["h.0.crossattention.c_attn"] == ((32, 64, 0, 1),)
    assert targets["h.0.attn.c_attn"] == ((0, 32, 0, 1), (64, 96, 0, 1))


def test_an_unknown_layout_is_refused_by_name_and_can_be_adapted_whole():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv_proj = nn.Linear(8, 24)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.ModuleDict({"attention": Attention()})])

    with pytest.raises(ModelError, match=r"layer layers.0.attention.qkv_proj \(Model\) holds several .* is not known"):
        find_targets(Model(), "qv")
    assert find_targets(Model(), "attention")[0].rows == 24


def test_rwkv_is_adapted_in_its_attention_and_not_in_its_feed_forward_layers():
    config = AutoConfig.for_model("rwkv", vocab_size=64, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32)
    names = [target.name for target in find_targets(AutoModel.from_config(config), "qv")]
    assert names and not any("feed_forward" in name for name in names)


T5 = {
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("name", ["gpt_neox", "phi3", "modernbert", "falcon 7b", "bloom", "deepseek_v2", "t5"])
@pytest.mark.parametrize("targets", ["qv", "all-linear"])
def test_a_plan_needs_no_flags_for_these_architectures(name, targets, tmp_path, monkeypatch, capsys):
    kind, options = ("t5", T5) if name == "t5" else ARCHITECTURES[name]
    AutoConfig.for_model(kind, **{"pad_token_id": 0, **options}).save_pretrained(tmp_path)
    flags = ["--methods", "lora,cla", "--rank", "2", "--targets", targets, "--task", "text", "--json"]
    assert invoke(monkeypatch, "plan", "--model", str(tmp_path), *flags) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(row["adapter_parameters"] > 0 and row["activation_bytes"] > 0 for row in rows)
