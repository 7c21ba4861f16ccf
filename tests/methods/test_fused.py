"""The fused forward, one autograd node a layer, against PEFT's own forward of modules: outputs, gradients, second
derivatives, hooks, bf16, finished links in the weight, compilation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import tunewise
from contracts import models
from tunewise import CATALOG
from tunewise.methods.adapters.base import layer_adapters
from tunewise.methods.folding_layer import differentiable_twice


def pair(method: str, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Any, Any]:
    """Two adapted layers with a nonlinearity between: by our node, and by PEFT's modules."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 8, bias=False)).to(dtype)
    made = []
    for fold in ("auto", "never"):
        model = tunewise.attach(copy.deepcopy(net), method, rank=4, targets=["0", "2"], fold=fold, **options)
        if CATALOG[method].chain is not None:
            models.stir(model, 0.02, seed=1, only="")
            tunewise.restart(model)
        models.stir(model, 0.02, seed=2, only="")
        made.append(model)
    assert [layer.may_fuse for layer in (m.get_base_model()[0] for m in made)] == [True, False]
    return made[0], made[1]


LOW_RANK = ["lora", "rslora", "asym", "cola", "rac"]
X = torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", LOW_RANK)
def test_outputs_and_gradients_are_those_of_pefts_own_forward(method):
    """fp64 to 1e-12, the input's gradient too; a chain in its second link."""
    results = []
    for model in pair(method):
        x = X.clone().requires_grad_()
        y = model(x)
        y.sin().sum().backward()
        results.append([y, x.grad, *(p.grad for p in model.parameters() if p.requires_grad)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_a_second_derivative_is_right_where_the_input_is_kept_and_refused_where_not():
    """lora: to 1e-9 of PEFT's own forward. asym keeps no input; `differentiable_twice` turns to PEFT's forward."""
    products = []
    for model in pair("lora"):
        trained = [p for p in model.parameters() if p.requires_grad]
        first = torch.autograd.grad(model(X).sin().sum(), trained, create_graph=True)
        products.append(torch.autograd.grad(sum((g**2).sum() for g in first), trained))
    for mine, theirs in zip(*products, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)
    model, _ = pair("asym")
    trained = [p for p in model.parameters() if p.requires_grad]
    with pytest.raises(RuntimeError, match="fold='never'"):
        torch.autograd.grad(model(X).sin().sum(), trained, create_graph=True)
    differentiable_twice(model)
    first = torch.autograd.grad(model(X).sin().sum(), trained, create_graph=True)
    assert torch.autograd.grad(sum((g**2).sum() for g in first), trained)


@pytest.mark.parametrize("method", ["lora", "cla"])
def test_what_wants_to_see_the_layers_inside_sees_them(method):
    """A hook on the base layer, a hook on all modules, autocast: outputs as without, and the hooks are called."""
    model, _ = pair(method, torch.float32)
    x, seen = X.float(), []
    expected = model(x)
    layer = model.get_base_model()[0].get_base_layer()
    handle = layer.register_forward_hook(lambda *_: seen.append("base"))
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)
    handle.remove()
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append("all") if m is layer else None)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)
    handle.remove()
    assert seen == ["base", "all"]
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype is torch.bfloat16


def test_bf16_weights_with_fp32_factors_give_pefts_outputs_to_a_rounding():
    """Sums in fp32, rounded once: within one unit of bf16's last place of PEFT's own forward, and fp32 gradients."""
    mine, theirs = (model(X.bfloat16()) for model in pair("lora", torch.bfloat16))
    torch.testing.assert_close(mine, theirs, rtol=2**-7, atol=2**-9)
    mine.float().sum().backward()


@pytest.mark.parametrize("name", [name for name, method in CATALOG.items() if method.selects_columns])
def test_columns_beside_a_bf16_weight_are_those_of_the_plain_additive_form(name):
    """A chain in its second link: outputs and gradients to a rounding of bf16."""
    results, x = [], X.bfloat16()
    for model in pair(name, torch.bfloat16):
        own = x.clone().requires_grad_()
        y = model(own)
        y.float().sin().sum().backward()
        results.append([y, own.grad, *(p.grad.bfloat16() for p in model.parameters() if p.requires_grad)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2**-5, atol=2**-5)


# --- finished links in the weight ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cola", "rac"])
def test_finished_links_stand_in_w_and_leave_no_trace(method):
    """After two links: W0's bits in the state, when disabled, after merging and unmerging, and on unloading."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 8))
    before, x = net[0].weight.detach().clone(), X.float()
    unchanged = net(x).detach()
    model = tunewise.attach(net, method, rank=4, targets=["0", "2"])
    for link in range(2):
        models.stir(model, 0.02, seed=link, only="")
        expected = model(x).detach()
        tunewise.restart(model)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
    layer = model.get_base_model()[0]
    assert not torch.equal(layer.get_base_layer().weight, before)
    assert torch.equal(model.state_dict()["base_model.model.0.base_layer.weight"], before)
    with model.disable_adapter():
        assert torch.equal(model(x), unchanged)
    model.merge_adapter()
    model.unmerge_adapter()
    assert torch.equal(model.state_dict()["base_model.model.0.base_layer.weight"], before)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
    assert all(len(adapter.finished) == 2 for adapter in layer_adapters(model))
    assert torch.equal(model.unload()[0].weight, before)


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("method", ["lora", "cola"])
def test_low_rank_methods_compile_in_one_graph(method):
    """fullgraph, across a restart, losses to 1e-6 of the uncompiled ones."""
    plain, _ = pair(method, torch.float32)
    own = copy.deepcopy(plain)
    fast = torch.compile(own, backend="aot_eager", fullgraph=True)
    for link in range(2):
        if link and CATALOG[method].chain is not None:
            tunewise.restart(plain)
            tunewise.restart(fast)
        assert losses(fast, own) == pytest.approx(losses(plain, plain), abs=1e-6)


def losses(model: Any, own: Any) -> list[float]:
    adamw = torch.optim.AdamW([p for p in own.parameters() if p.requires_grad], lr=1e-2, fused=True)
    found = []
    for _ in range(2):
        loss = model(X.float()).square().mean()
        loss.backward()
        adamw.step()
        adamw.zero_grad()
        found.append(loss.item())
    return found
