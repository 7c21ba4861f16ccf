"""Factors and weights that other hands put in place: a folded model computes what the same model computes unfolded.

The reference is the twin attached with fold="never" holding the same factors: outputs to 1e-5 in fp32.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, jvp
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import tunewise

COLUMNS = ["cla", "r-cla", "paca", "c3la"]
X = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 8), nn.Tanh(), nn.Linear(8, 8))


def attached(name: str, fold: str = "auto") -> Any:
    return tunewise.attach(net(), name, rank=3, targets=["0", "2", "4"], fold=fold)


def factors(model: Any) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


@torch.no_grad()
def stir(model: Any, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for p in factors(model):
        p.add_(torch.randn(p.shape, generator=draw), alpha=0.1)


@torch.no_grad()
def same_as_unfolded(model: Any, name: str) -> None:
    twin = attached(name, "never")
    for p, q in zip(factors(twin), factors(model), strict=True):
        p.copy_(q)
    torch.testing.assert_close(model(X), twin(X), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", COLUMNS)
def test_values_assigned_to_data_are_seen_wherever_they_lie(name):
    """Perturb, evaluate, put back, perturb anew: a freed tensor's address comes back with other numbers in it."""
    model = attached(name)
    stir(model, 1)
    own = [p.data for p in factors(model)]
    draw = torch.Generator().manual_seed(2)
    for _ in range(8):
        for p, values in zip(factors(model), own, strict=True):
            p.data = values + 0.3 * torch.randn(values.shape, generator=draw)
        same_as_unfolded(model, name)
        for p, values in zip(factors(model), own, strict=True):
            p.data = values
    same_as_unfolded(model, name)


def test_an_optimizer_whose_parameters_are_exchanged_for_as_many_others_moves_those():
    """Block by block, as BAdam and LISA train; fused, so that no version counts."""
    model = attached("cla")
    first, second, third = factors(model)
    adamw = torch.optim.AdamW([first, second], lr=0.1, fused=True)
    for block in ([first, second], [second, third], [third, first]):
        adamw.param_groups[0]["params"] = block
        model(X).square().sum().backward()
        adamw.step()
        model.zero_grad()
        same_as_unfolded(model, "cla")


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("before", ["a state is loaded", "merged and unmerged"])
def test_weights_copied_from_a_folded_twin_are_taken_for_what_they_are(before, name):
    """An average of weights, its copy made right after a load or a merge: nothing is added twice."""
    model = attached(name)
    stir(model, 1)
    if before == "a state is loaded":
        model.load_state_dict(model.state_dict())
    else:
        model.merge_adapter()
        model.unmerge_adapter()
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for seed in (2, 3):
        stir(model, seed)
        model(X)
        mean.update_parameters(model)
    same_as_unfolded(mean.module, name)
    assert torch.equal(mean.module.unload()[0].weight, net()[0].weight)


@pytest.mark.parametrize("name", [*COLUMNS, "cola"])
def test_a_functional_call_takes_pristine_and_folded_weights_and_writes_into_neither(name):
    model = attached(name)
    for link in range(2):  # cola stands in the weight from its second link on
        stir(model, link)
        if name == "cola" and not link:
            tunewise.restart(model)
    with torch.no_grad():
        expected = model(X)
    for given in (model.state_dict(), {k: v.detach().clone() for k, v in model.named_parameters()}):
        if name in ("cola", "paca"):  # whose saved factors are not the tensors that are trained
            given = {k: v for k, v in given.items() if "lora_" not in k}
        kept = copy.deepcopy(given)
        with torch.no_grad():
            torch.testing.assert_close(functional_call(model, given, (X,)), expected, rtol=0, atol=1e-5)
        assert all(torch.equal(kept[key], given[key]) for key in kept)
    weights = {k: v for k, v in model.state_dict().items() if k.endswith("base_layer.weight")}
    torch.testing.assert_close(functional_call(model, weights, (X,)), expected, rtol=0, atol=1e-5)
    with pytest.raises(RuntimeError, match="neither W0 nor.*fold='never'"):
        functional_call(model, {k: v + 1 for k, v in weights.items()}, (X,))
    torch.testing.assert_close(model(X), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [*COLUMNS, "lora"])
def test_forward_mode_derivatives_follow_the_factors(name):
    """By dual numbers and by `torch.func.jvp`, to 1e-4 of those of the unfolded model."""
    found = []
    for fold in ("auto", "never"):
        model = attached(name, fold)
        stir(model, 1)
        model(X)
        own = {k: p for k, p in model.named_parameters() if p.requires_grad}
        draw = torch.Generator().manual_seed(5)
        tangents = {k: torch.randn(p.shape, generator=draw) for k, p in own.items()}
        with forward_ad.dual_level():
            dual = {k: forward_ad.make_dual(p.detach(), tangents[k]) for k, p in own.items()}
            found.append(forward_ad.unpack_dual(functional_call(model, dual, (X,))).tangent)
        values = {k: p.detach() for k, p in own.items()}
        found.append(jvp(lambda given, m=model: functional_call(m, given, (X,)), (values,), (tangents,))[1])
    for tangent in found:
        torch.testing.assert_close(tangent, found[-1], rtol=1e-4, atol=1e-4)
        assert bool(tangent.any())


class Blocks(nn.Module):
    """A block with nanoGPT's projection: q, k and v in one `nn.Linear`."""

    def __init__(self) -> None:
        super().__init__()
        self.h = nn.ModuleList([nn.ModuleDict({"attn": nn.ModuleDict({"c_attn": nn.Linear(12, 36)})})])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.h[0]["attn"]["c_attn"](x)


@pytest.mark.parametrize("name", ["cola", "rac", "c3la"])
def test_slices_of_a_fused_linear_layer_have_chains(name):
    """Only the slices move; the function goes on over a restart, to 1e-5."""
    base = Blocks()
    unchanged = base(X).detach()
    model = tunewise.attach(base, name, rank=3, targets=["value"])
    for link in range(3):
        stir(model, link)
        expected = model(X).detach()
        tunewise.restart(model)
        torch.testing.assert_close(model(X), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(X)[:, :24], unchanged[:, :24], rtol=0, atol=1e-6)
    assert (model(X) - unchanged)[:, 24:].abs().max() > 0.01


def test_dropout_that_is_put_on_afterwards_drops():
    model = attached("cla").train()
    stir(model, 1)
    for layer in model.get_base_model()[::2]:
        layer.lora_dropout["default"] = nn.Dropout(0.5)
    assert not torch.equal(model(X), model(X))
    model.eval()
    same_as_unfolded(model, "cla")


def test_an_input_made_under_inference_mode_is_read_by_layers_that_share_it():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.value = nn.Linear(12, 5), nn.Linear(12, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.query(x) + self.value(x)

    model = tunewise.attach(Pair(), "r-cla", rank=3, targets=["query", "value"])
    stir(model, 1)
    with torch.inference_mode():
        x = X.clone()
    gradients = []
    for given in (x, X):
        model.zero_grad()
        model(given).sum().backward()
        gradients.append([p.grad.clone() for p in factors(model)])
    assert all(map(torch.equal, *gradients))


def second_link(name: str) -> Any:
    model = attached(name)
    stir(model, 1)
    if tunewise.attachment(model).method.chain is not None:
        tunewise.restart(model)
        stir(model, 2)
    return model


@pytest.mark.parametrize("name", [*COLUMNS, "cola", "lora"])
def test_disabled_while_merged_it_is_the_base_model_from_the_first_call_on(name):
    """PEFT takes the merge back in the midst of that call."""
    model = second_link(name)
    expected = model(X).detach()
    model.merge_adapter()
    with model.disable_adapter():
        for _ in range(2):
            assert torch.equal(model(X), net()(X))
    torch.testing.assert_close(model(X), expected, rtol=0, atol=1e-5)


class Own(nn.Parameter):
    """As other libraries derive them."""


@pytest.mark.parametrize("name", ["cla", "cola", "lora"])
@pytest.mark.parametrize("kind", [Own, torch.Tensor])
def test_unmerging_is_exact_whatever_the_weights_class(kind, name):
    model = second_link(name)
    expected = model(X).detach()
    for layer in model.get_base_model()[::2]:
        layer.undo_fold()
        values = layer.base_layer.weight.detach().clone()
        own = Own(values, requires_grad=False) if kind is Own else values
        layer.base_layer._parameters["weight"] = own
    model.merge_adapter()
    torch.testing.assert_close(model(X), expected, rtol=0, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(model(X), expected, rtol=0, atol=1e-5)
    assert torch.equal(model.unload()[0].weight, net()[0].weight)


def test_a_merge_that_is_refused_leaves_everything_as_it_was():
    model = attached("cla")
    stir(model, 1)
    model.merge_adapter(adapter_names=[])
    assert all(layer._fold is not None for layer in model.get_base_model()[::2])
    with torch.no_grad():
        factors(model)[1][0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        model.merge_adapter(safe_merge=True)
    model.unmerge_adapter()
    with torch.no_grad():
        factors(model)[1][0, 0] = 0.0
    assert torch.equal(model.state_dict()["base_model.model.2.base_layer.weight"], net()[2].weight)
    same_as_unfolded(model, "cla")


@pytest.mark.parametrize("name", ["cla", "paca"])
def test_a_state_that_is_assigned_stays_the_callers(name):
    """Two models of one state; loading and stepping the one leaves the state, and so the other, alone."""
    source = attached(name)
    stir(source, 1)
    state = source.state_dict()
    kept = copy.deepcopy(state)
    expected = source(X).detach()
    for _ in range(2):
        model = attached(name)
        model.load_state_dict(state, assign=True)
        torch.testing.assert_close(model(X), expected, rtol=0, atol=1e-5)
        base = {key: value for key, value in state.items() if "base_layer.weight" in key}
        assert all(torch.equal(value, kept[key]) for key, value in base.items())


def test_weights_may_be_loaded_before_factors_that_are_still_on_meta():
    model = attached("cla")
    for layer in model.get_base_model()[::2]:
        layer.undo_fold()
        layer.lora_A.to("meta")
        layer.lora_B.to("meta")
    base = {key: value for key, value in attached("cla").state_dict().items() if "lora_" not in key}
    model.load_state_dict(base, strict=False, assign=True)
    assert not any(layer._fold for layer in model.get_base_model()[::2])
