"""The linearised network: what it is (closed forms, finite differences), that it trains, and that files keep it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from linears import Linears, adapted, jitter
from test_run import Recorder, make_spec
from tunewise import attach
from tunewise.catalog import CATALOG
from tunewise.errors import SpecError
from tunewise.methods.attachment import attachment
from tunewise.methods.chain import restart
from tunewise.methods.delta import delta
from tunewise.run import run
from tunewise.spec import MethodSpec, RunSpec, StudySpec, parse
from tunewise.store.folders import RunStore
from tunewise.tasks.build import build_task
from tunewise.training.build import build_model
from tunewise.training.events import Interrupted
from tunewise.training.linearised import (
    frozen_copy,
    linear_parts,
    linearise,
    live_change,
    moved_outputs,
    verify_linearised,
)

ALL = sorted(CATALOG)


def linear_spec(model: Path, data: Path, method: str = "lora", **training: Any) -> RunSpec:
    return make_spec(model, data, method, linearised=True, **training)


@pytest.mark.parametrize("method", ["lora", "asym", "cla", "paca"])
def test_of_a_linear_model_the_linearisation_is_the_model(method: str) -> None:
    """One linear layer, dW far from 0: equal outputs and gradients, to fp64 rounding."""
    torch.manual_seed(0)
    x = torch.randn(7, 6, dtype=torch.float64)
    model, twin = adapted(Linears(6, 4), method)
    ordinary = model(x=x).logits
    expected = torch.autograd.grad(ordinary.square().sum(), [p for p in model.parameters() if p.requires_grad])
    linearise(model, twin)
    found = model(x=x).logits
    torch.testing.assert_close(found, ordinary, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(found.square().sum(), [p for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(gradients, expected, rtol=1e-11, atol=1e-11)


def test_of_two_linear_layers_the_product_of_both_updates_is_left_out() -> None:
    """W2 W1 x + dW2 W1 x + W2 dW1 x; the ordinary network has dW2 dW1 x as well."""
    torch.manual_seed(0)
    x = torch.randn(7, 6, dtype=torch.float64)
    net = Linears(6, 5, 4)
    w1, w2 = (layer.weight.detach().clone() for layer in net.layers)
    model, twin = adapted(net, "lora")
    d1, d2 = (value.detach() for value in live_change(model, twin).values())
    ordinary = model(x=x).logits
    linearise(model, twin)
    expected = x @ (w2 @ w1 + d2 @ w1 + w2 @ d1).T
    torch.testing.assert_close(model(x=x).logits, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ordinary - expected, x @ (d2 @ d1).T, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ALL)
def test_at_the_start_outputs_and_gradients_are_the_ordinary_ones(method: str, tiny_model: Path, toy_csv: Path) -> None:
    spec = make_spec(tiny_model, toy_csv, method)
    task = build_task(spec)
    batch = task.collate(task.train[:8])
    losses, gradients = [], []
    for kind in (spec, linear_spec(tiny_model, toy_csv, method)):
        model = build_model(kind, task).eval()
        out = model(**batch)
        out.loss.backward()
        losses.append(float(out.loss.detach()))
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    if method == "lora-one":  # starts with dW: equal in the first order only
        return
    assert gradients[0].keys() == gradients[1].keys()
    largest = max(float(g.norm()) for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert float((gradient - gradients[1][name]).norm()) <= 1e-5 * largest, name


@pytest.mark.parametrize("method", [m for m in ALL if m not in ("fft", "head")])
def test_the_change_is_dw_and_the_heads_way(method: str, tiny_model: Path, toy_csv: Path) -> None:
    """dW as `delta` has it, over all links; the head against the untrained one of that seed."""
    spec = linear_spec(tiny_model, toy_csv, method)
    task = build_task(spec)
    twin = task.load_model(spec.seed).eval()
    model = build_model(spec, task)
    jitter(model)
    if attachment(model).method.chain:
        restart(model)
        jitter(model)
    change = live_change(model, twin)
    for name, dense in delta(model).items():
        torch.testing.assert_close(change.pop(f"{name}.weight"), dense, rtol=1e-5, atol=1e-6)
    assert set(change) == {"classifier.weight", "classifier.bias"}
    assert all(float(value.detach().abs().max()) > 0.01 for value in change.values())


def test_slices_of_a_fused_projection_and_transposed_weights() -> None:
    """GPT-2's q and v: the change is in the layer's own orientation (in, out), k's third untouched."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=11, n_positions=8, num_labels=2, pad_token_id=0)
    base = GPT2ForSequenceClassification(config).eval()
    twin = frozen_copy(base, own_values=False)
    ids = torch.randint(1, 11, (3, 5))
    for method in ("lora", "cla"):
        model = attach(frozen_copy(base, own_values=True), method, rank=2, targets="qv", fold="never")
        jitter(model)
        weight = live_change(model, twin)["transformer.h.0.attn.c_attn.weight"]
        assert weight.shape == (16, 48)
        assert float(weight[:, 16:32].detach().abs().max()) == 0.0
        torch.testing.assert_close(weight.T, delta(model)["transformer.h.0.attn.c_attn"])
        model.eval()
        moved = moved_outputs(twin, live_change(model, twin), {"input_ids": ids})
        torch.testing.assert_close(moved, model(input_ids=ids).logits, rtol=1e-5, atol=1e-6)


def change_of(task: Any, spec: RunSpec, size: float = 0.05) -> tuple[nn.Module, dict[str, Tensor]]:
    twin = task.load_model(spec.seed).eval()
    model = build_model(spec, task)
    jitter(model, size)
    return twin, {name: value.detach() for name, value in live_change(model, twin).items()}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_derivative_agrees_with_finite_differences(attention: str, tiny_model: Path, toy_csv: Path) -> None:
    """Central differences in fp64: error of order h^2."""
    spec = linear_spec(tiny_model, toy_csv)
    task = build_task(spec)
    batch = {k: v for k, v in task.collate(task.train[:6]).items() if k != "labels"}
    twin, change = change_of(task, spec)
    twin.set_attn_implementation(attention)
    twin = twin.double()
    change = {name: value.double() for name, value in change.items()}
    value, derivative = linear_parts(twin, change, batch)
    torch.testing.assert_close(value, twin(**batch).logits, rtol=1e-10, atol=1e-10)
    h = 1e-4
    ahead, behind = (moved_outputs(twin, {name: sign * h * d for name, d in change.items()}, batch) for sign in (1, -1))
    torch.testing.assert_close(derivative, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-8)
    assert float(derivative.detach().norm()) > 1e-2


def test_the_loss_is_convex_in_the_change_and_the_ordinary_network_is_not_even_affine(
    tiny_model: Path, toy_csv: Path
) -> None:
    """Along segments between random points the linearised logits are affine and the loss lies below its chord."""
    spec = linear_spec(tiny_model, toy_csv)
    task = build_task(spec)
    batch = dict(task.collate(task.train[:8]))
    labels = batch.pop("labels")
    twin, shape = change_of(task, spec)
    twin = twin.double()
    generator = torch.Generator().manual_seed(0)

    def point() -> dict[str, Tensor]:
        return {n: torch.randn(v.shape, generator=generator, dtype=torch.float64) * 0.3 for n, v in shape.items()}

    bent = 0.0
    for _ in range(4):
        ends = point(), point()
        lines = {t: {n: (1 - t) * ends[0][n] + t * ends[1][n] for n in shape} for t in (0.0, 0.25, 0.5, 1.0)}
        flat = {t: sum(linear_parts(twin, change, batch)) for t, change in lines.items()}
        torch.testing.assert_close(flat[0.25], 0.75 * flat[0.0] + 0.25 * flat[1.0], rtol=1e-9, atol=1e-9)
        loss = {t: float(F.cross_entropy(logits, labels)) for t, logits in flat.items()}
        assert loss[0.5] <= 0.5 * (loss[0.0] + loss[1.0]) + 1e-12
        assert loss[0.25] <= 0.75 * loss[0.0] + 0.25 * loss[1.0] + 1e-12
        real = {t: moved_outputs(twin, change, batch) for t, change in lines.items()}
        bent = max(bent, float((real[0.5] - 0.5 * (real[0.0] + real[1.0])).abs().max()))
    assert bent > 1e-2


def reference_logits(base: nn.Module, adapter: Path, inputs: dict[str, Tensor]) -> Tensor:
    """f_lin from stock PEFT's dW and head alone, fp64, by two reverse passes instead of forward mode."""
    start = {n: p.detach().double().clone() for n, p in base.named_parameters()}
    base.set_attn_implementation("eager")
    network = frozen_copy(base, own_values=True).double()
    stock = PeftModel.from_pretrained(base, str(adapter))
    change = {}
    for name, module in stock.get_base_model().named_modules():
        if hasattr(module, "get_delta_weight"):
            change[f"{name}.weight"] = module.get_delta_weight("default").double()
    for name, parameter in stock.get_base_model().named_parameters():
        if ".modules_to_save." in name:
            plain = name.replace(".modules_to_save.default.", ".")
            change[plain] = parameter.detach().double() - start[plain]
    names = list(change)
    with sdpa_kernel(SDPBackend.MATH):
        value, derivative = torch.autograd.functional.jvp(
            lambda *w: functional_call(network, dict(zip(names, w)), args=(), kwargs=inputs).logits,
            tuple(start[n] for n in names),
            tuple(change[n].detach() for n in names),
        )
    return value + derivative


@pytest.mark.parametrize("method", ["lora", "c3la"])
def test_a_run_trains_scores_and_stores_the_linearised_network(
    method: str, tiny_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    spec = linear_spec(tiny_model, toy_csv, method, learning_rate=0.1, epochs=3)
    spec = spec.model_copy(update={"method": MethodSpec(name=method, rank=8, targets="all-linear")})
    store, task = RunStore(tmp_path), build_task(spec)
    record = run(spec, store)
    assert record.status == "done"
    adapter = store.folder(record.id) / "adapter"
    assert json.loads((adapter / "tunewise.json").read_text())["linearised"] is True
    assert record.check.max_logit_difference <= 1e-5
    assert "linearised" in record.check.loader
    batch = dict(task.collate(list(task.test)))
    labels = batch.pop("labels")
    logits = reference_logits(task.load_model(spec.seed), adapter, batch)
    assert record.results.test.loss == pytest.approx(float(F.cross_entropy(logits, labels)), abs=1e-5)
    network = PeftModel.from_pretrained(task.load_model(spec.seed), str(adapter)).eval()
    with torch.no_grad():
        ordinary = F.cross_entropy(network(**batch).logits.double(), labels)
    assert abs(float(ordinary) - record.results.test.loss) > 1e-4  # else the test above could not tell them apart
    assert record.results.train.loss < math.log(3) - 0.003  # it learns


def test_stopped_and_continued_equals_uninterrupted(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    spec = linear_spec(tiny_model, toy_csv, epochs=1)
    whole = run(spec, RunStore(tmp_path / "whole"))
    store = RunStore(tmp_path / "parts")
    with pytest.raises(Interrupted):
        run(spec, store, listener=Recorder(stop_at=4))
    assert run(spec, store).results == whole.results


def test_a_damaged_adapter_is_found_out(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from tunewise.errors import StoreError
    from tunewise.methods.saving import save

    spec = linear_spec(tiny_model, toy_csv)
    task = build_task(spec)
    model = build_model(spec, task).eval()
    jitter(model)
    folder = save(model, tmp_path / "adapter")
    batch = task.collate(task.test[:4])
    assert verify_linearised(model, folder, task.load_model(spec.seed), batch).max_logit_difference <= 1e-5
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(key for key in tensors if "value.lora_B" in key)
    save_file({**tensors, name: 3 * tensors[name]}, file, metadata={"format": "pt"})
    with pytest.raises(StoreError, match="linearised form"):
        verify_linearised(model, folder, task.load_model(spec.seed), batch)


def test_a_linearised_run_has_another_id(tiny_model: Path, toy_csv: Path) -> None:
    plain = make_spec(tiny_model, toy_csv)
    assert linear_spec(tiny_model, toy_csv, plain.method.name).id != plain.id
    assert make_spec(tiny_model, toy_csv, linearised=False).id == plain.id


def test_what_can_not_be_linearised_is_refused(tiny_model: Path, toy_csv: Path) -> None:
    content = {
        "model": str(tiny_model), "data": str(toy_csv), "methods": "lora,peft:dora", "training": {"linearised": True},
    }  # fmt: skip
    with pytest.raises(SpecError, match="peft:dora.*can't be trained linearised"):
        parse(StudySpec, content)
    task = build_task(make_spec(tiny_model, toy_csv))
    for method, why in (("peft:dora", "PEFT's own"), ("cla", "folded")):
        model = attach(task.load_model(0), method, rank=2)
        with pytest.raises(SpecError, match=why):
            linearise(model, task.load_model(0))
    model, twin = adapted(Linears(6, 4), "lora")
    linearise(model, twin)
    with pytest.raises(SpecError, match="already"):
        linearise(model, twin)
    with pytest.raises(SpecError, match="by name"):
        model(torch.zeros(1, 6, dtype=torch.float64))
