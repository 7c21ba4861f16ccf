"""Parameter groups of every method, and the preconditioner against its literal formula."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import tunewise
from contracts import models
from tunewise import CATALOG, OptimizerRule
from tunewise.errors import SpecError
from tunewise.training.optimizers import parameter_groups
from tunewise.training.preconditioner import precondition

RANK = 4


def attach(name: Any, kind: str = "bert", **options: Any) -> Any:
    method = CATALOG[name] if isinstance(name, str) else name
    if method.start == "gradient":
        options["batches"] = [models.batch(kind)]
    return tunewise.attach(models.make(kind), name, rank=RANK, **options)


# --- groups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta", "llama", "vit"])
@pytest.mark.parametrize("name", list(CATALOG))
def test_every_trained_tensor_is_in_one_group_at_its_rate(name, kind):
    """A and changed weights at lr, B at ratio x lr (16 for lora+, once), the head at head_lr; decay on matrices alone."""
    model, lr, ratio = attach(name, kind), 1e-3, CATALOG[name].optimizer.ratio
    done = tunewise.attachment(model)
    rates, decays = {}, {}
    for group in parameter_groups(model, lr=lr, weight_decay=0.1, head_lr=5e-4):
        for p in group["params"]:
            assert id(p) not in rates
            rates[id(p)], decays[id(p)] = group["lr"], group["weight_decay"]
    for key, p in model.named_parameters():
        if not p.requires_grad:
            assert id(p) not in rates
            continue
        plain = key.removeprefix("base_model.model.")
        expected = 5e-4 if plain.split(".")[0] in done.head else lr
        assert rates.pop(id(p)) == (lr * ratio if "lora_B" in key else expected), key
        assert decays[id(p)] == (0.1 if p.ndim >= 2 else 0.0), key
    assert not rates


def test_lora_plus_steps_b_at_sixteen_times_the_rate_once():
    rates = {group["name"]: group["lr"] for group in parameter_groups(attach("lora+"), lr=2e-4)}
    assert rates == pytest.approx({"A": 2e-4, "B": 3.2e-3, "head": 2e-4})
    other = replace(CATALOG["lora+"], optimizer=OptimizerRule(ratio=4.0))
    rates = {group["name"]: group["lr"] for group in parameter_groups(attach(other), lr=2e-4)}
    assert rates["B"] == pytest.approx(8e-4)


@pytest.mark.parametrize("name", ["lora", "cla", "paca", "head", "fft"])
def test_without_decay_nothing_decays_and_with_it_only_matrices_do(name):
    for decay in (0.0, 0.1):
        for group in parameter_groups(attach(name), lr=1e-3, weight_decay=decay):
            for p in group["params"]:
                assert group["weight_decay"] == (decay if p.ndim >= 2 else 0.0)


def test_the_optimizer_is_fused_adamw_with_the_given_numbers():
    optimizer = tunewise.optimizer(attach("cla"), lr=1e-3, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.2)
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert group["fused"] and group["betas"] == (0.8, 0.95) and group["eps"] == 1e-6


def test_a_model_without_a_method_is_refused():
    with pytest.raises(SpecError, match="attach"):
        tunewise.optimizer(models.make("bert"), lr=1e-3)


@pytest.mark.parametrize("name", ["lora+", "cla"])
def test_a_step_is_adamws_own_formula(name):
    """One step from a known gradient, fp64 to 1e-12: p (1 - rate decay) - rate g / (|g| + eps)."""
    model = attach(name).double()
    optimizer = tunewise.optimizer(model, lr=1e-2, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    ratio, expected = CATALOG[name].optimizer.ratio, {}
    for key, p in model.named_parameters():
        if p.requires_grad:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            rate = 1e-2 * (ratio if "lora_B" in key else 1.0)
            decayed = p.detach() * (1 - rate * (0.1 if p.ndim >= 2 else 0.0))
            expected[key] = decayed - rate * p.grad / (p.grad.abs() + 1e-8)
    optimizer.step()
    for key, value in expected.items():
        torch.testing.assert_close(model.get_parameter(key).detach(), value, rtol=0, atol=1e-12)


# --- the preconditioner ----------------------------------------------------------------------------------------------


def factors_of(layer: Any) -> tuple[nn.Parameter, nn.Parameter]:
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def adapted_layers(model: Any) -> list[Any]:
    base = model.get_base_model()
    return [base.get_submodule(target.name) for target in tunewise.attachment(model).targets]


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_gradients_are_preconditioned_as_in_the_paper(eps):
    """grad_A <- (B^T B + eps I)^-1 grad_A, grad_B <- grad_B (A A^T + eps I)^-1, both of the factors before the step;
    fp64 against explicit inverses to 1e-9; the head's gradient is left alone."""
    model = attach("lora").double()
    models.stir(model, size=1.0)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    precondition(optimizer, model, eps=eps)
    model(**models.batch("bert")).loss.backward()
    expected, eye = {}, torch.eye(RANK, dtype=torch.float64)
    for layer in adapted_layers(model):
        a, b = factors_of(layer)
        expected[a] = a.detach() - 0.1 * torch.linalg.inv(b.T @ b + eps * eye).detach() @ a.grad
        expected[b] = b.detach() - 0.1 * b.grad @ torch.linalg.inv(a @ a.T + eps * eye).detach()
    for p in trained:
        expected.setdefault(p, p.detach() - 0.1 * p.grad)
    optimizer.step()
    for p, value in expected.items():
        torch.testing.assert_close(p.detach(), value, rtol=1e-9, atol=1e-9)


def test_the_step_does_not_depend_on_how_a_product_is_split():
    """(A, B) and (Q A, B Q^-1) give the same new B A to 1e-6, which plain gradient steps do not."""
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(RANK, RANK, generator=generator, dtype=torch.float64) + 2 * torch.eye(RANK, dtype=torch.float64)
    products = {}
    for preconditioned in (True, False):
        for turned in (False, True):
            model = attach("lora").double()
            models.stir(model, size=1.0)
            for layer in adapted_layers(model):
                a, b = factors_of(layer)
                if turned:
                    a.data, b.data = q @ a.data, b.data @ torch.linalg.inv(q)
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
            if preconditioned:
                precondition(optimizer, model, eps=1e-12)
            model(**models.batch("bert")).loss.backward()
            optimizer.step()
            products[preconditioned, turned] = torch.stack(list(tunewise.delta(model).values()))
    assert (products[True, False] - products[True, True]).abs().max() < 1e-6
    assert (products[False, False] - products[False, True]).abs().max() > 1e-5


@pytest.mark.parametrize("name", ["asym", "rac"])
def test_a_pair_with_a_frozen_factor_is_preconditioned_in_the_other(name):
    model = attach(name).double()
    models.stir(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    precondition(optimizer, model)
    model(**models.batch("bert")).loss.backward()
    layer = adapted_layers(model)[0]
    a, b = factors_of(layer)
    eye = torch.eye(RANK, dtype=torch.float64)
    expected = b.detach() - b.grad @ torch.linalg.inv(a @ a.T + 1e-6 * eye)
    before = a.detach().clone()
    optimizer.step()
    torch.testing.assert_close(b.detach(), expected.detach(), rtol=1e-9, atol=1e-9)
    assert torch.equal(a, before)


def test_the_methods_rule_or_the_argument_switches_it_on():
    """`preconditioned` of the method, unless told otherwise: the two optimizers then differ in their steps."""
    method = replace(CATALOG["lora"], optimizer=OptimizerRule(preconditioned=True))
    results = {}
    for label, name, asked in (("rule", method, None), ("argument", "lora", True), ("off", method, False)):
        model = attach(name)
        models.stir(model, size=1.0)
        optimizer = tunewise.optimizer(model, lr=1e-2, preconditioned=asked)
        for _ in range(2):
            model(**models.batch("bert")).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        results[label] = torch.stack(list(tunewise.delta(model).values()))
    assert torch.equal(results["rule"], results["argument"])
    assert not torch.allclose(results["rule"], results["off"])


def test_a_model_without_pairs_is_refused():
    with pytest.raises(SpecError, match="no pairs"):
        tunewise.optimizer(attach("head"), lr=1e-3, preconditioned=True)


@pytest.mark.parametrize(
    "targets",
    [
        "qv",
        ["query", "value", "c_fc"],
    ],
)
def test_pairs_on_slices_are_preconditioned_or_refused(targets):
    """GPT-2's stacked factors, block by block: every trained factor's gradient is changed, or `SpecError`."""
    model = attach("lora", "gpt2", targets=targets)
    models.stir(model, size=1.0)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    try:
        precondition(optimizer, model)
    except SpecError:
        return
    model(**models.batch("gpt2")).loss.backward()
    before = [p.grad.clone() for p in trained]
    optimizer.step()
    assert not any(torch.equal(p.grad, g) for p, g in zip(trained, before, strict=True))
