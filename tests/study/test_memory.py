"""The forecast of memory against processes that really train, and counts against models that are really attached."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BartConfig, OpenAIGPTConfig

from study.train_child import config_of, head_of, miniature_of, task_of
from tunewise.catalog import CATALOG
from tunewise.measures.cost.counters import saved_for_backward
from tunewise.methods.adapters.base import layer_adapters
from tunewise.methods.chain import restart
from tunewise.methods.folding_layer import FoldingLayer
from tunewise.models.head import prepare
from tunewise.spec import MethodSpec
from tunewise.study.forecast import forecast_methods
from tunewise.study.live_memory import LiveMemory
from tunewise.tasks.build import task_class
from tunewise.theory import information_bound
from tunewise.training.build import attach_method, count_parameters

CASES = [
    ("minilm", "lora", 32, 128, "all-linear"),
    ("minilm", "cla", 32, 128, "qv"),
    ("minilm", "fft", 16, 64, "qv"),
    ("roberta", "lora", 16, 128, "qv"),
    ("roberta", "paca", 8, 256, "all-linear"),
    ("gpt2", "asym", 4, 256, "qv"),
    ("gpt2", "fft", 4, 128, "qv"),
    ("llama", "cla", 4, 256, "all-linear"),
    ("llama", "lora", 8, 128, "qv"),
    ("vit", "lora", 16, 0, "all-linear"),
    ("vit", "head", 32, 0, "qv"),
    ("llama", "rac", 4, 128, "all-linear"),
    ("minilm", "cola", 16, 64, "all-linear"),
]


LANGUAGE = [
    ("lora", 2, 512, {"dtype": "bfloat16", "quantization": "nf4"}),
    ("lora", 4, 256, {"dtype": "float32", "quantization": "nf4", "checkpointing": True}),
    ("lora", 2, 512, {"dtype": "bfloat16"}),
    ("lora", 4, 256, {"dtype": "bfloat16", "checkpointing": True}),
    ("cla", 4, 256, {"dtype": "float32", "checkpointing": True}),
    ("paca", 2, 256, {"dtype": "bfloat16", "quantization": "nf4", "checkpointing": True}),
    ("lora", 2, 256, {"dtype": "float32", "quantization": "int8"}),
    ("fft", 1, 64, {"dtype": "float32", "optimizer": "adamw_8bit"}),
    ("fft", 2, 128, {"dtype": "float32", "accumulation": True}),
    ("lora", 4, 1024, {"dtype": "bfloat16", "quantization": "nf4", "checkpointing": True}),
]


def forecast_of(name, method, batch, length, targets, **settings):
    spec = MethodSpec(name=method, targets=targets)
    task, head = task_of(name), head_of(name)
    return forecast_methods(config_of(name), task, head, [spec], batch=batch, length=length or 128, **settings)[0]


def truth(name, method, batch, length, targets, **settings):
    script = Path(__file__).with_name("train_child.py")
    command = [sys.executable, str(script), name, method, str(batch), str(length), targets, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return int(done.stdout.split()[-1])


def ratio(*case, **settings):
    return forecast_of(*case, **settings).memory_bytes / truth(*case, **settings)


@pytest.mark.parametrize("case", [CASES[2]], ids=lambda c: "-".join(map(str, c)))
def test_memory_is_forecast(case):
    assert 0.90 <= ratio(*case) <= 1.15


@pytest.mark.parametrize(
    "case", [LANGUAGE[0], *(pytest.param(c, marks=pytest.mark.slow) for c in LANGUAGE[1:])], ids=str
)
def test_memory_of_language_models_is_forecast(case):
    """In bf16, 4 and 8 bits, with and without checkpointing and accumulation, to 15 %."""
    pytest.importorskip("bitsandbytes")
    method, batch, length, settings = case
    assert ratio("small-llama", method, batch, length, "all-linear", **settings) == pytest.approx(1, abs=0.15)


@pytest.mark.slow
def test_memory_is_within_15_percent_nine_times_in_ten_and_never_under_90():
    ratios = {case: ratio(*case) for case in CASES}
    print({"-".join(map(str, case)): round(found, 3) for case, found in ratios.items()})  # README names the extremes
    near = [case for case, r in ratios.items() if abs(r - 1) <= 0.15]
    assert len(near) >= 0.9 * len(ratios), ratios
    assert min(ratios.values()) >= 0.90, ratios


@pytest.mark.parametrize(("name", "method"), [("roberta", "lora"), ("llama", "fft"), ("gpt2", "cla")])
def test_what_is_kept_for_the_backward_is_what_a_real_step_keeps(name, method):
    """Storages of a real step on the CPU, by autograd's own hooks, against the forecast from the configuration."""
    config, head = config_of(name), head_of(name)
    config.num_hidden_layers = 2
    config.vocab_size = 500
    expected = forecast_methods(
        config, task_of(name), head, [MethodSpec(name=method, targets="all-linear")], batch=2, length=32
    )[0]
    for key, value in head.config().items():
        setattr(config, key, value)
    config.pad_token_id = 0
    model = head.model_class.from_config(config)
    prepare(model, head)
    model = attach_method(model, MethodSpec(name=method, targets="all-linear"), seed=0).train()
    ids = torch.randint(5, 500, (2, 32))
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids if head.pretrained else ids[:, 0] % 4}
    assert expected.activation_bytes == pytest.approx(saved_for_backward(model, batch), rel=0.06)


@pytest.mark.parametrize(
    "config",
    [
        OpenAIGPTConfig(vocab_size=500, n_positions=64, n_embd=32, n_layer=2, n_head=2),
        BartConfig(
            vocab_size=500,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=64,
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_classifiers_that_look_at_the_values_of_a_batch_are_forecast(config):
    """They ask whether texts begin or end with padding, and whether a mask is true throughout."""
    head, spec = task_class("text").make_head(["a", "b", "c"]), MethodSpec(name="lora", targets="all-linear")
    row = forecast_methods(copy.deepcopy(config), task_class("text"), head, [spec], batch=2, length=32)[0]
    for key, value in {**head.config(), "pad_token_id": 0}.items():
        setattr(config, key, value)
    model = attach_method(head.model_class.from_config(config), spec, seed=0).train()
    ids = torch.randint(5, 500, (2, 32))
    ids[:, -1] = config.eos_token_id or 5
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 2])}
    assert row.trainable_parameters == count_parameters(model).trainable
    assert row.activation_bytes == pytest.approx(saved_for_backward(model, batch), rel=0.06)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["cola", "rac", "c3la", "r-c3la", "c-paca", "lora"])
def test_what_a_chain_keeps_of_its_links_is_what_its_last_link_really_keeps(method, dtype):
    """To the byte: the tensors of a model that was restarted as often as its run is, beyond those of its first link.
    64 columns, of which four links of rank 20 would touch more than there are."""
    config, head = miniature_of("minilm"), head_of("minilm")
    spec = MethodSpec(name=method, rank=20, targets="all-linear")
    expected = forecast_methods(config, task_of("minilm"), head, [spec], batch=2, length=8, dtype=dtype)[0].link_bytes
    for key, value in head.config().items():
        setattr(config, key, value)
    model = head.model_class.from_config(config, dtype=getattr(torch, dtype))
    prepare(model, head)
    model = attach_method(model, spec, seed=0).train()
    ids = torch.randint(5, 500, (2, 8))
    found = []
    for link in range(4 if CATALOG[method].chain else 1):
        if link:
            restart(model)
        model(input_ids=ids, labels=ids[:, 0] % 4).loss.backward()
        found.append(kept_by_links(model))
    assert expected == found[-1] - found[0]
    assert (expected > 0) == (CATALOG[method].chain is not None)


def kept_by_links(model):
    """Bytes of finished links and of W0's values."""
    kept = [tensor for adapter in layer_adapters(model) for pair in adapter.finished for tensor in pair]
    kept = [tensor for tensor in kept if tensor.is_floating_point()]  # not the numbers of columns
    layers = [module for module in model.modules() if isinstance(module, FoldingLayer)]
    kept += [layer._fold.original for layer in layers if layer._fold is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)


def test_a_view_of_what_was_there_before_is_not_counted():
    weight = torch.empty(1000, 1000, device="meta")
    with LiveMemory() as live:
        seen = weight.t()
        made = seen @ seen
    assert live.now == made.untyped_storage().nbytes() == live.peak
    del made
    assert live.now == 0


def test_a_deep_model_is_stepped_at_two_shallow_depths_once_for_all_methods_of_one_step(monkeypatch):
    """What keeps a plan of an 8 B model within seconds: 17 methods are eight kinds of step, of two and three layers."""
    import tunewise.study.forecast_step as step

    depths = []
    simulate = step._simulate

    def counted(setup, method):
        depths.append(setup.config.num_hidden_layers)
        return simulate(setup, method)

    monkeypatch.setattr(step, "_simulate", counted)
    config = config_of("llama")
    config.num_hidden_layers = 32
    rows = forecast_methods(
        config,
        task_of("llama"),
        head_of("llama"),
        [MethodSpec(name=m) for m in CATALOG if m != "head"],
        batch=2,
        length=16,
    )
    assert len(rows) == 16
    assert set(depths) == {2, 3} and len(depths) <= 16


COUNTED = [("minilm", method) for method in CATALOG]
COUNTED += [(name, method) for name in ("llama", "vit") for method in ("fft", "lora", "cla", "paca", "cola", "c3la")]
COUNTED += [("vit", "head")]


@pytest.mark.parametrize(("name", "method"), COUNTED)
def test_counts_are_those_of_the_model_really_attached(name, method):
    if method == "lora-one":
        pytest.skip("its start needs a gradient; lora's counts are its own")
    spec = MethodSpec(name=method, rank=4, targets="all-linear")
    config, head = config_of(name), head_of(name)
    if method != "lora":  # one method in its whole depth is enough
        config.num_hidden_layers = 2
    found = forecast_methods(copy.deepcopy(config), task_of(name), head, [spec], batch=2, length=16)[0]
    for key, value in head.config().items():
        setattr(config, key, value)
    with torch.device("meta"):
        model = head.model_class.from_config(config)
    prepare(model, head)
    facts = count_parameters(attach_method(model, spec, seed=0))
    assert found.trainable_parameters == facts.trainable
    assert found.adapter_parameters == facts.adapter
    assert found.trainable_share == pytest.approx(facts.trainable / facts.parameters)
    assert found.gradient_bytes == 4 * facts.trainable
    assert found.optimizer_bytes == 8 * facts.trainable


def test_the_order_is_as_it_must_be():
    rows = {
        row.method: row
        for row in forecast_methods(
            config_of("minilm"),
            task_of("minilm"),
            head_of("minilm"),
            [MethodSpec(name=m, targets="all-linear") for m in ("fft", "head", "lora", "asym", "cla", "paca", "c3la")],
            batch=16,
            length=64,
            samples=1000,
        )
    }
    memory = {name: row.memory_bytes for name, row in rows.items()}
    assert memory["head"] < memory["cla"] <= memory["lora"] < memory["fft"]
    assert rows["cla"].activation_bytes == pytest.approx(rows["asym"].activation_bytes, rel=0.01)
    assert rows["asym"].activation_bytes <= rows["lora"].activation_bytes
    assert rows["c3la"].information_bound == pytest.approx(2 * rows["cla"].information_bound)  # four links: sqrt(4)
    assert rows["head"].information_bound is None
    assert rows["lora"].rank_without_spurious_minima == 89  # r (r + 1) / 2 > 4 x 1000


def test_depth_is_extrapolated_exactly():
    deep = config_of("minilm")
    whole = forecast_methods(deep, task_of("minilm"), head_of("minilm"), [MethodSpec(name="lora")], batch=4, length=32)[
        0
    ]
    # The same model, its layers stepped one and all.
    import tunewise.study.forecast_step as step

    before, step.DEEP = step.DEEP, 100
    try:
        exact = forecast_methods(
            deep, task_of("minilm"), head_of("minilm"), [MethodSpec(name="lora")], batch=4, length=32
        )[0]
    finally:
        step.DEEP = before
    assert whole.weight_bytes == exact.weight_bytes
    assert whole.activation_bytes == exact.activation_bytes
    assert whole.memory_bytes == pytest.approx(exact.memory_bytes, rel=1e-3)


def test_methods_of_peft_are_forecast_and_bounded_by_what_they_train():
    """DoRA trains LoRA's numbers and a magnitude for each output."""
    lora, dora, adalora = (
        forecast_methods(
            config_of("minilm"),
            task_of("minilm"),
            head_of("minilm"),
            [MethodSpec(name=name)],
            batch=2,
            length=16,
            samples=1000,
        )[0]
        for name in ("lora", "peft:dora", "peft:adalora")
    )
    assert dora.adapter_parameters == lora.adapter_parameters + 6 * 2 * 384
    assert lora.information_bound < dora.information_bound
    for row in (dora, adalora):
        expected = float(information_bound(row.adapter_parameters, 1000))
        assert row.information_bound == pytest.approx(expected)
