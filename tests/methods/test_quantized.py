"""Weight-only quantized bases, through PEFT's own torchao backend: the additive path on weights that stay as they are."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import tunewise

torchao = pytest.importorskip("torchao.quantization")

METHODS = ["lora", "asym", "cla", "r-cla", "c3la", "paca", "cola", "lora-one"]
IDS = torch.randint(0, 60, (6, 9), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture(scope="module", params=["int8", "int4"])
def quantized(request: pytest.FixtureRequest) -> BertForSequenceClassification:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForSequenceClassification(
            BertConfig(
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=128,
                vocab_size=60,
                num_labels=3,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
    config = (
        torchao.Int8WeightOnlyConfig()
        if request.param == "int8"
        else torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4)
    )
    torchao.quantize_(model.bert.encoder, config)
    return model.eval()


def attach(base, method: str):
    batches = {"batches": [{"input_ids": IDS, "labels": LABELS}]} if method == "lora-one" else {}
    return tunewise.attach(copy.deepcopy(base), method, rank=4, seed=1, **batches)


def dense_weights(model) -> dict[str, torch.Tensor]:
    return {
        name: module.get_base_layer().weight.dequantize().clone()
        for name, module in model.named_modules()
        if hasattr(module, "get_base_layer") and "lora" not in name and hasattr(module, "lora_A")
    }


@pytest.mark.parametrize("method", METHODS)
def test_trains_saves_and_leaves_the_quantized_weights_alone(method: str, quantized, tmp_path) -> None:
    model = attach(quantized, method)
    if method != "lora-one":
        with torch.no_grad():
            assert torch.equal(model.eval()(IDS).logits, quantized(IDS).logits)
    before = dense_weights(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    model.train()
    for step in range(6):
        loss = model(IDS, labels=LABELS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
        if step == 2 and tunewise.attachment(model).method.chain is not None:
            tunewise.restart(model, optimizer)
    assert losses[-1] < losses[0] - 0.01
    assert all(torch.equal(before[name], weight) for name, weight in dense_weights(model).items())
    with torch.no_grad():
        expected = model.eval()(IDS).logits
        tunewise.save(model, tmp_path / "a")
        again = tunewise.load(copy.deepcopy(quantized), tmp_path / "a").eval()(IDS).logits
    assert (again - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("method", ["cla", "c3la", "paca", "cola"])
def test_outputs_are_those_of_the_dequantized_weight_plus_delta(method: str, quantized) -> None:
    """y = x (W_dequantized + dW)^T for one layer, to 1e-5."""
    model = attach(quantized, method)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
        if method in ("c3la", "cola"):
            tunewise.restart(model)
            for name, parameter in model.named_parameters():
                if ".lora_B." in name:
                    parameter.add_(0.01)
        name = "bert.encoder.layer.0.attention.self.query"
        layer = model.get_base_model().get_submodule(name)
        x = torch.randn(5, 64, generator=torch.Generator().manual_seed(4))
        base = layer.get_base_layer()
        expected = x @ (base.weight.dequantize() + tunewise.delta(model)[name]).T + base.bias
        assert (layer(x) - expected).abs().max() <= 1e-5
        assert float(tunewise.delta(model)[name].abs().max()) > 0.005


def test_one_step_gradient_on_a_quantized_base_is_that_of_its_dequantized_weights(quantized) -> None:
    dense = copy.deepcopy(quantized)
    for module in dense.modules():
        if isinstance(module, torch.nn.Linear) and hasattr(module.weight, "dequantize"):
            if type(module.weight).__name__ not in ("Parameter", "Tensor"):
                module.weight = torch.nn.Parameter(module.weight.dequantize(), requires_grad=False)
    deltas = [tunewise.delta(attach(base, "lora-one")) for base in (quantized, dense)]
    for name in deltas[0]:
        assert (deltas[0][name] - deltas[1][name]).norm() <= 2e-3 * deltas[1][name].norm()
