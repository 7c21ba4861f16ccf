"""Chains in a plain loop: how many links, what a restart keeps, what it forgets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tunewise
from contracts import models
from tunewise import CATALOG, Chain
from tunewise.errors import SpecError, TunewiseError
from tunewise.methods.adapters.base import layer_adapters
from tunewise.methods.chain import current_link

RANK = 4
CHAINED = [name for name, method in CATALOG.items() if method.chain is not None]
KINDS = ["bert", "gpt2", "llama"]


def attach(name: str, kind: str = "bert", **options: Any) -> Any:
    return tunewise.attach(models.make(kind), name, rank=RANK, **options)


# --- the schedule ----------------------------------------------------------------------------------------------------


@given(links=st.integers(1, 60), total=st.integers(1, 300))
def test_k_links_are_cut_as_step_by_step_counting_cuts_them(links, total):
    """Step t (from 1) is in link min((t - 1) // floor(T / k), k - 1): k links exactly, each with a step at least."""
    chain = Chain(links=links)
    if links > total:
        with pytest.raises(SpecError, match="at least"):
            chain.restarts(total)
        return
    span = total // links
    link_of = [min((step - 1) // span, links - 1) for step in range(1, total + 1)]
    assert chain.restarts(total) == [t for t in range(1, total) if link_of[t] != link_of[t - 1]]
    assert sorted(set(link_of)) == list(range(links)) and len(chain.restarts(total)) == links - 1


@given(
    every=st.integers(1, 40),
    epoch=st.integers(1, 30),
    total=st.integers(1, 300),
    unit=st.sampled_from(["step", "epoch"]),
)
def test_links_of_a_fixed_length_are_cut_as_step_by_step_counting_cuts_them(every, epoch, total, unit):
    """The last link may be short and is never empty."""
    span = every * (epoch if unit == "epoch" else 1)
    link_of = [(step - 1) // span for step in range(1, total + 1)]
    found = Chain(every=every, unit=unit).restarts(total, epoch)
    assert found == [t for t in range(1, total) if link_of[t] != link_of[t - 1]]


def test_twenty_epochs_every_three_make_seven_links():
    """Table 7 of 2606.13767, counted in epochs; the last link has two."""
    assert Chain(every=3).restarts(20 * 11, 11) == [33, 66, 99, 132, 165, 198]


def test_a_chain_in_epochs_of_unknown_length_is_refused():
    with pytest.raises(SpecError, match="unit='step'"):
        Chain(every=3).restarts(100)


@pytest.mark.parametrize("options", [{}, {"links": 2, "every": 3}, {"links": 0}, {"every": 0}])
def test_a_schedule_that_means_nothing_is_refused(options):
    with pytest.raises(SpecError):
        Chain(**options)


# --- a restart -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", ["auto", "never"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CHAINED)
def test_the_function_is_unchanged_across_every_restart(name, kind, fold):
    """1e-5 in fp32, over ten links of m = 32, r = 4: the columns wrap around. B = 0; the base keeps its bits."""
    model, inputs = attach(name, kind, fold=fold), models.batch(kind)
    start = {key: value.clone() for key, value in model.state_dict().items() if "lora_" not in key}
    trainable = {key for key, p in model.named_parameters() if p.requires_grad}
    for link in range(10):
        assert current_link(model) == link
        models.stir(model, size=0.03, seed=link)
        before = models.logits(model, inputs)
        assert tunewise.restart(model) == link + 1
        torch.testing.assert_close(models.logits(model, inputs), before, rtol=0, atol=1e-5)
        assert {key for key, p in model.named_parameters() if p.requires_grad} == trainable
        for adapter in layer_adapters(model):
            _, update = adapter.factors()
            assert not update.any()
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in start.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CHAINED)
def test_a_restart_forgets_the_adapters_state_and_keeps_the_heads(name, kind):
    """As if the adapter's tensors were new to AdamW; the head's moments and step keep their bits."""
    model = attach(name, kind)
    optimizer = tunewise.optimizer(model, lr=1e-2)
    for _ in range(2):
        model(**models.batch(kind)).loss.backward()
        optimizer.step()
    named = {key: p for key, p in model.named_parameters() if p.requires_grad}
    kept = {
        key: {what: value.clone() for what, value in optimizer.state[p].items()}
        for key, p in named.items()
        if "lora_" not in key
    }
    groups = [{key: value for key, value in g.items() if key != "params"} for g in optimizer.param_groups]
    tunewise.restart(model, optimizer)
    assert {id(p) for p in optimizer.state} == {id(named[key]) for key in kept}
    for key, state in kept.items():
        assert all(torch.equal(value, optimizer.state[named[key]][what]) for what, value in state.items())
    assert all(p.grad is None for key, p in named.items() if "lora_" in key)
    assert groups == [{key: value for key, value in g.items() if key != "params"} for g in optimizer.param_groups]
    model(**models.batch(kind)).loss.backward()
    optimizer.step()
    assert all(int(optimizer.state[p]["step"]) == (1 if "lora_" in key else 3) for key, p in named.items())


@pytest.mark.parametrize("name", CHAINED)
def test_neither_parameters_nor_optimizer_memory_grow_with_the_links(name):
    model, sizes = attach(name), set()
    optimizer = tunewise.optimizer(model, lr=1e-3)
    for link in range(6):
        if link:
            tunewise.restart(model, optimizer)
        model(**models.batch("bert")).loss.backward()
        optimizer.step()
        state = sum(v.numel() for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v))
        sizes.add((tunewise.trainable_parameters(model), sum(p.numel() for p in model.parameters()), state))
    assert len(sizes) == 1


@pytest.mark.parametrize("name", CHAINED)
def test_each_links_update_is_kept_in_fp32_and_their_sum_is_delta(name):
    """delta after the chain = the sum of what each link added, to 1e-6; the state_dict's factors multiply out to it."""
    model, before = attach(name, "gpt2"), None
    total = None
    for link in range(4):
        if link:
            tunewise.restart(model)
        models.stir(model, seed=link)
        now = tunewise.delta(model)
        added = {key: now[key] - (before[key] if before else 0) for key in now}
        total = {key: added[key] + (total[key] if total else 0) for key in now}
        before = now
    state, scale = model.state_dict(), tunewise.attachment(model).scale
    for key, dense in tunewise.delta(model).items():
        torch.testing.assert_close(dense, total[key], rtol=0, atol=1e-6)
        a, b = (state[f"base_model.model.{key}.lora_{f}.default.weight"] for f in "AB")
        assert a.shape[0] == b.shape[1] == 4 * 2 * RANK
        torch.testing.assert_close(scale * (b @ a), dense, rtol=0, atol=1e-6)


def test_a_restart_needs_a_chain():
    with pytest.raises(SpecError, match="no chain"):
        tunewise.restart(attach("cla"))
    with pytest.raises(SpecError, match="attach"):
        tunewise.restart(models.make("bert"))


@pytest.mark.parametrize(
    "name",
    [
        "c3la",
        "cola",
        "c-paca",
    ],
)
def test_a_restart_while_merged_is_right_or_refused(name):
    """The function after unmerging is the one before the restart, to 1e-5; r = m, so that links share columns."""
    model, inputs = tunewise.attach(models.make("bert"), name, rank=models.HIDDEN), models.batch("bert")
    models.stir(model)
    before = models.logits(model, inputs)
    model.merge_adapter()
    try:
        tunewise.restart(model)
    except TunewiseError:
        return
    model.unmerge_adapter()
    torch.testing.assert_close(models.logits(model, inputs), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CHAINED)
def test_one_adapters_restart_leaves_another_adapter_alone(name):
    model = attach(name, "gpt2")
    models.stir(model)
    model = tunewise.attach(model, "c3la", rank=RANK, adapter_name="other")
    models.stir(model, seed=2)
    before = {key: value.clone() for key, value in model.state_dict().items() if ".default." in key}
    assert tunewise.restart(model, adapter_name="other") == 1
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert current_link(model, "default") == 0


@settings(max_examples=25, deadline=None)
@given(
    rank=st.integers(1, 12),
    features=st.integers(12, 20),
    links=st.integers(1, 6),
    name=st.sampled_from(["c3la", "r-c3la", "c-paca"]),
    fold=st.sampled_from(["auto", "never"]),
)
def test_any_rank_and_any_number_of_links_add_up(rank, features, links, name, fold):
    """Also where r does not divide m and blocks overlap: outputs = (W0 + sum of the links) x, fp64 to 1e-9."""
    generator = torch.Generator().manual_seed(rank * 1000 + features * 10 + links)
    layer = torch.nn.Linear(features, 5).double()
    start, bias = layer.weight.detach().clone(), layer.bias
    model = tunewise.attach(torch.nn.Sequential(layer), name, rank=rank, targets=["0"], fold=fold)
    inner = model.get_base_model()[0]
    total, touched = start.clone(), torch.zeros(features, dtype=torch.bool)
    for link in range(links):
        if link:
            tunewise.restart(model)
        columns = inner.lora_A["default"].weight.nonzero()[:, 1]
        assert len(columns.unique()) == rank
        step = torch.randn(5, rank, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            inner.lora_B["default"].weight += step
        total[:, columns] += inner.scaling["default"] * step
        touched[columns] = True
        x = torch.randn(3, features, generator=generator, dtype=torch.float64)
        expected = torch.nn.functional.linear(x, total, bias)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-9)
    assert int(touched.sum()) == min(links * rank, features)
    assert torch.equal(model.state_dict()["base_model.model.0.base_layer.weight"], start)
