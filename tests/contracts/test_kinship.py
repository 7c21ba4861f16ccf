"""How the methods of the catalog are related, and that methods of one's own keep the same promises."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import PeftModel

import tunewise
from contracts import models
from contracts.every import KINDS, RANK, attach
from tunewise import CATALOG, Chain, Method, OptimizerRule
from tunewise.methods.adapters.base import layer_adapters

# --- how the methods are related -------------------------------------------------------------------------------------

PARENTS = [("c3la", "cla"), ("r-c3la", "r-cla"), ("c-paca", "paca"), ("cola", "lora"), ("rac", "asym")]


def after_steps(model: Any, kind: str, optimizer: torch.optim.Optimizer, steps: int = 3, dtype: Any = None) -> Any:
    """The trained tensors after `steps` on one batch."""
    inputs = {k: v.to(dtype) if dtype and v.is_floating_point() else v for k, v in models.batch(kind).items()}
    for _ in range(steps):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {key: p.detach() for key, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("chained", "parent"), PARENTS)
def test_a_chain_of_one_link_is_its_parent_bit_for_bit(chained, parent, kind):
    results = []
    for model in (attach(chained, kind, chain=Chain(links=1)), attach(parent, kind)):
        results.append(after_steps(model, kind, tunewise.optimizer(model, lr=1e-2, weight_decay=0.1)))
        results[-1] |= {"logits": models.logits(model, models.batch(kind))}
    first, second = results
    assert set(first) == set(second)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("kind", KINDS)
def test_lora_plus_at_ratio_one_is_lora_bit_for_bit(kind):
    results = []
    for method in (replace(CATALOG["lora+"], optimizer=OptimizerRule(ratio=1.0)), CATALOG["lora"]):
        model = attach(method, kind)
        results.append(after_steps(model, kind, tunewise.optimizer(model, lr=1e-2)))
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[1])


@pytest.mark.parametrize("kind", KINDS)
def test_rac_with_selector_blocks_is_c3la(kind):
    """A dense chain of frozen factors, set to the blocks' one-hot rows at every link, in fp64 to 1e-9."""
    results = []
    for name in ("c3la", "rac"):
        model = attach(name, kind).double()
        for link in range(3):
            if link:
                tunewise.restart(model)
            if name == "rac":
                for adapter in layer_adapters(model):
                    columns = torch.arange(RANK) + link * RANK
                    block = torch.eye(models.HIDDEN, dtype=torch.float64)[columns]
                    adapter.a.data.copy_(block.repeat(len(adapter.target.parts), 1))
            after_steps(model, kind, torch.optim.AdamW(model.parameters(), lr=1e-2), dtype=torch.float64)
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in models.batch(kind).items()}
        results.append((tunewise.delta(model), models.logits(model, inputs)))
    (first, logits), (second, dense) = results
    torch.testing.assert_close(logits, dense, rtol=0, atol=1e-9)
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], rtol=0, atol=1e-6)  # delta is told in fp32


@pytest.mark.parametrize("rule", ["sgd", "adam"])
@pytest.mark.parametrize("kind", KINDS)
def test_d_paca_is_cla_with_the_rate_rescaled(kind, rule):
    """s = 2: SGD at g s^2, Adam at g s with eps / s, without weight decay; fp64 to 1e-9 after 5 steps."""
    s, g, eps = 2.0, 1e-2, 1e-3
    results = []
    for name, squared, once in (("cla", g, g), ("d-paca", g * s**2, g * s)):
        model = attach(name, kind).double()
        factors = [p for key, p in model.named_parameters() if p.requires_grad and "lora_" in key]
        if rule == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(factors, lr=squared)
        else:
            optimizer = torch.optim.Adam(factors, lr=once, eps=eps if name == "cla" else eps / s)
        after_steps(model, kind, optimizer, steps=5, dtype=torch.float64)
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in models.batch(kind).items()}
        results.append(models.logits(model, inputs))
    assert (results[0] - models.logits(models.make(kind), models.batch(kind))).abs().max() > 1e-3
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("links", [1, 3, 8, 9])
@pytest.mark.parametrize("name", ["c3la", "r-c3la", "c-paca"])
@pytest.mark.parametrize("kind", KINDS)
def test_k_links_touch_exactly_k_r_columns_and_all_from_k_r_equal_m(kind, name, links):
    """m = 32, r = 4: 8 links touch every column once; a 9th begins again."""
    model = attach(name, kind)
    for link in range(links):
        if link:
            tunewise.restart(model)
        models.stir(model, seed=link)
    parts = {t.name: t.parts for t in tunewise.attachment(model).targets}
    for key, dense in tunewise.delta(model).items():
        for part in parts[key]:
            assert int(dense[part.indices].any(dim=0).sum()) == min(links * RANK, models.HIDDEN)


# --- methods of one's own --------------------------------------------------------------------------------------------

OWN = {
    "columns at the paper's alpha / r": Method("columns", "sampled"),
    "first columns in a chain": Method("columns", "selector", chain=Chain(links=3), scaling="one"),
    "columns in a chain at alpha / r": Method("columns", "sampled", chain=Chain(links=3)),
    "cla at the root of r": Method("B", "selector", scaling="alpha/sqrt(r)"),
    "a chain of lora at the root of r": Method("AB", "random", chain=Chain(links=3), scaling="alpha/sqrt(r)"),
    "asym with orthonormal rows": Method("B", "random", lora_a_init="orthonormal"),
}


@pytest.mark.parametrize("fold", ["auto", "never"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("label", list(OWN))
def test_a_method_of_ones_own_keeps_the_same_promises(label, kind, fold, tmp_path):
    """Identity to 1e-6; trained, restarted, saved: the same logits by PEFT, by tunewise and merged, to 1e-5."""
    model, inputs = attach(OWN[label], kind, alpha=12, fold=fold), models.batch(kind)
    base = models.logits(models.make(kind), inputs)
    torch.testing.assert_close(models.logits(model, inputs), base, rtol=0, atol=1e-6)
    for link in range(3 if OWN[label].chain is not None else 1):
        if link:
            tunewise.restart(model)
        models.train(model, inputs, steps=2)
    expected = models.logits(model, inputs)
    assert (expected - base).abs().max() > 1e-2
    folder = tunewise.save(model, tmp_path / "adapter")
    for other in (
        PeftModel.from_pretrained(models.make(kind), str(folder)),
        tunewise.load(models.make(kind), folder, trainable=True),
        copy.deepcopy(model).merge_and_unload(),
    ):
        torch.testing.assert_close(models.logits(other, inputs), expected, rtol=0, atol=1e-5)
