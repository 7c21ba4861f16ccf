"""Column methods against a dense one-hot A: outputs, every gradient, what is kept, how often columns are taken."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import nn

import tunewise
from contracts import models
from methods import layers
from tunewise import CATALOG
from tunewise.methods.adapters import columns as columns_module
from tunewise.methods.adapters import input_groups as groups_module

RANK, IN, OUT = layers.RANK, layers.IN, layers.OUT

COLUMN_METHODS = [name for name, method in CATALOG.items() if method.selects_columns]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def attach(kind: str, name: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    return tunewise.attach(layers.make(kind).to(dtype), name, rank=RANK, targets=layers.targets(kind), **options)


def is_folded(model: Any) -> bool:
    return getattr(layers.adapted(model), "_fold", None) is not None


# --- the mathematics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("fold", ["auto", "never"])
@pytest.mark.parametrize("kind", layers.KINDS)
@pytest.mark.parametrize("name", COLUMN_METHODS)
@pytest.mark.parametrize("shape", [(2, 5, IN), (7, IN), (IN,)], ids=["batch", "rows", "vector"])
def test_outputs_and_all_gradients_equal_the_dense_one_hot_reference(name, kind, fold, dtype, shape):
    """1e-12 in fp64, 1e-5 in fp32; chains also in their 2nd and 8th link, whose columns wrap around (m = 24, r = 4)."""
    model = attach(kind, name, dtype, fold=fold)
    layer = layers.adapted(model)
    weight = layers.out_in(kind, layers.make(kind).to(dtype).state_dict()[weight_key(kind)])
    dense = layers.Dense(kind, weight, getattr(layer.get_base_layer(), "bias", None))
    links = 8 if CATALOG[name].chain is not None else 1
    for link in range(links):
        if link:
            tunewise.restart(model)
        origin = layer.lora_B["default"].weight.detach().clone() if CATALOG[name].trained == "columns" else 0.0
        models.stir(model, seed=link)
        a, b, scale = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight, layer.scaling["default"]
        if link in (0, 1, links - 1):
            compare(model, dense, a, b, origin, scale, shape, dtype)
            assert is_folded(model) == (fold == "auto")
        dense.finish(a, b.detach() - origin, scale)


def weight_key(kind: str) -> str:
    return "h.0.attn.c_attn.weight" if kind == "fused" else "layer.weight"


def compare(model: Any, dense: Any, a: Any, b: Any, origin: Any, scale: float, shape: Any, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    other_x = x.detach().clone().requires_grad_()
    other_b = b.detach().clone().requires_grad_()
    model.zero_grad()
    found = model(x)
    found.sin().sum().backward()
    expected = dense(other_x, a, other_b - origin, scale)
    expected.sin().sum().backward()
    for ours, theirs in ((found, expected), (x.grad, other_x.grad), (b.grad, other_b.grad)):
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["r-cla", "r-c3la", "paca"])
def test_a_block_layout_selects_contiguous_columns(name):
    for seed in range(8):
        model = attach("linear", name, layout="block", seed=seed)
        columns = layers.adapted(model).lora_A["default"].weight.nonzero()[:, 1]
        assert torch.equal(columns, torch.arange(RANK) + columns[0])


@pytest.mark.parametrize("fold", ["auto", "never"])
def test_a_layer_called_twice_in_one_graph_sums_both_gradients(fold):
    """ALBERT calls one layer many times; fp64 to 1e-12 against the dense reference."""
    model = attach("linear without bias", "r-cla", torch.float64, fold=fold)
    models.stir(model)
    layer = layers.adapted(model)
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight
    dense = layers.Dense("linear", layers.make("linear without bias").double().layer.weight, None)
    x, y = (torch.randn(3, IN, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    (model(x).sin() * model(y).cos() + model(x)).sum().backward()
    other = b.detach().clone().requires_grad_()
    (dense(x, a, other, 2.0).sin() * dense(y, a, other, 2.0).cos() + dense(x, a, other, 2.0)).sum().backward()
    torch.testing.assert_close(b.grad, other.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "conv1d", "fused"])
def test_without_tokens_the_gradient_is_zero(kind):
    """A rank may get an empty shard of a batch."""
    model = attach(kind, "r-cla")
    model(torch.zeros(0, IN, requires_grad=True)).sum().backward()
    assert not layers.adapted(model).lora_B["default"].weight.grad.any()


@pytest.mark.parametrize("fold", ["auto", "never"])
@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True)], ids=["relu", "dropout"])
def test_the_next_module_may_work_in_place(fold, act):
    """As it may after a stock LoRA layer; gradients to 1e-6 of those with a copy between."""
    gradients = []
    for between in (nn.Identity(), Copy()):
        model = attach("linear", "cla", fold=fold)
        models.stir(model)
        torch.manual_seed(0)
        x = torch.randn(3, IN)
        torch.manual_seed(0)
        act(between(model(x))).sum().backward()
        gradients.append(layers.adapted(model).lora_B["default"].weight.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


class Copy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()


def test_the_input_may_be_changed_in_place_afterwards():
    """Frozen linear layers keep no input, and neither does a folded one: a copy of r columns is all it needs."""
    gradients = []
    for changed in (False, True):
        model = attach("linear", "cla")
        torch.manual_seed(0)
        x = torch.randn(3, IN)
        y = model(x)
        if changed:
            x.zero_()
        y.sin().sum().backward()
        gradients.append(layers.adapted(model).lora_B["default"].weight.grad)
    assert torch.equal(*gradients)


# --- second derivatives, functional calls ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fold",
    ["auto", "never"],
)
def test_a_second_derivative_is_right_or_refused(fold):
    """Hessian-vector products through two folded layers: to 1e-9 in fp64, or a RuntimeError; never silently wrong."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)).double()
    x = torch.randn(5, 8, dtype=torch.float64)
    factors = [torch.randn(8, 2, dtype=torch.float64) * 0.3 for _ in range(2)]

    def plain(*b: torch.Tensor) -> torch.Tensor:
        update = [nn.functional.pad(2.0 * f, (0, 6)) for f in b]
        hidden = nn.functional.linear(x, net[0].weight + update[0], net[0].bias).tanh()
        return nn.functional.linear(hidden, net[2].weight + update[1], net[2].bias).sin().sum()

    expected = torch.autograd.functional.hvp(plain, tuple(factors), tuple(torch.ones_like(f) for f in factors))[1]
    model = tunewise.attach(net, "cla", rank=2, targets=["0", "2"], fold=fold)
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for p, f in zip(trained, factors, strict=True):
            p.copy_(f)
    try:
        first = torch.autograd.grad(model(x).sin().sum(), trained, create_graph=True)
        found = torch.autograd.grad(sum(g.sum() for g in first), trained)
    except RuntimeError as error:
        assert "second derivative" in str(error)
        return
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "fold",
    ["auto", "never"],
)
def test_functional_calls_use_the_factors_that_they_are_given(fold):
    """Two calls with other values of B, neither of them the module's own: 1e-6 against the module holding them."""
    model = attach("linear", "cla", fold=fold)
    models.stir(model)
    x = torch.randn(3, IN, generator=torch.Generator().manual_seed(0))
    key = next(k for k, p in model.named_parameters() if p.requires_grad)
    own = model.get_parameter(key).detach().clone()
    found = [torch.func.functional_call(model, {key: factor * own}, (x,)).detach() for factor in (2.0, 3.0)]
    assert torch.equal(model.get_parameter(key), own)
    for factor, ours in zip((2.0, 3.0), found, strict=True):
        with torch.no_grad():
            model.get_parameter(key).copy_(factor * own)
        torch.testing.assert_close(ours, model(x).detach(), rtol=0, atol=1e-6)


# --- what is kept for the backward -----------------------------------------------------------------------------------


def kept_storages(model: Any, x: torch.Tensor) -> tuple[dict[int, int], torch.Tensor]:
    """{address: bytes} of the storages that a forward keeps, the model's own parameters aside; and the output."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(x)
    return kept, output


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("name", COLUMN_METHODS)
def test_only_a_copy_of_the_active_columns_is_kept(name, kind):
    """Exactly rows x r numbers, in a storage of their own: neither x nor a view of it."""
    model = attach(kind, name)
    base = nn.Linear(IN, IN)  # x comes from below, as in a network
    x = base(torch.randn(50, IN))
    kept, output = kept_storages(model, x)
    assert list(kept.values()) == [50 * RANK * 4]
    assert x.untyped_storage().data_ptr() not in kept
    alive = weakref.ref(x)
    del x
    assert alive() is None
    output.sum().backward()


@pytest.mark.parametrize("name", ["cla", "r-cla"])
def test_slices_of_one_projection_keep_their_own_columns_alone(name):
    """q and v, sampled: 2 r columns of x."""
    kept, _ = kept_storages(attach("fused", name), torch.randn(50, IN, requires_grad=True))
    assert sum(kept.values()) == 50 * 2 * RANK * 4


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_additive_path_keeps_the_columns_and_not_x(dropout):
    """The columns of x, their numbers and s B; with dropout its mask over r columns, not over all of x."""
    model = attach("linear", "r-cla", fold="never", dropout=dropout)
    kept, _ = kept_storages(model, torch.randn(50, IN, requires_grad=True))
    mask = 50 * RANK * 4 if dropout else 0
    assert sum(kept.values()) == 50 * RANK * 4 + mask + 8 * RANK + OUT * RANK * 4


class Counting:
    """Counts calls of `take_columns` and remembers what it handed out."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, int, Any]] = []
        self.original = groups_module.take_columns

    def __call__(self, x: torch.Tensor, *args: Any) -> torch.Tensor:
        found = self.original(x, *args)
        self.taken.append((found.untyped_storage().data_ptr(), found.untyped_storage().nbytes(), weakref.ref(found)))
        return found

    def alive(self) -> int:
        return sum(1 for *_, found in self.taken if found() is not None)


@pytest.fixture
def counting(monkeypatch):
    counter = Counting()
    monkeypatch.setattr(groups_module, "take_columns", counter)
    monkeypatch.setattr(columns_module, "take_columns", counter)
    return counter


# Distinct inputs of a block's linear layers, and the columns (in units of r) that its layers select on them.
INPUTS = {"bert": (4, 6), "llama": (4, 7), "vit": (4, 6), "gpt2": (4, 4)}


@pytest.mark.parametrize("name", ["cla", "r-cla"])
@pytest.mark.parametrize("kind", list(INPUTS))
def test_layers_that_read_one_input_take_their_columns_once(kind, name, counting):
    """q, k and v together, and Llama's gate and up projections; in evaluation nothing is taken at all."""
    model = tunewise.attach(models.make(kind), name, rank=RANK, targets="all-linear")
    models.logits(model, models.batch(kind))
    assert not counting.taken
    loss = model(**models.batch(kind)).loss
    assert len(counting.taken) == models.LAYERS * INPUTS[kind][0]
    loss.backward()


EVERY_KIND = pytest.mark.parametrize(("kind", "name"), [(k, n) for k in INPUTS for n in ("cla", "r-cla")])


@EVERY_KIND
def test_what_all_layers_keep_is_the_columns_they_select(kind, name, counting):
    """rows x r for every layer's own columns; where siblings select the same ones, once."""
    model = tunewise.attach(models.make(kind), name, rank=RANK, targets="all-linear")
    loss = model(**models.batch(kind)).loss
    inputs, columns = INPUTS[kind]
    tokens = 4 * (5 if kind == "vit" else 6)
    units = inputs if name == "cla" else columns
    assert sum({address: size for address, size, _ in counting.taken}.values()) == models.LAYERS * units * tokens * 16
    loss.backward()


@EVERY_KIND
def test_after_the_backward_no_columns_are_kept(kind, name, counting):
    model = tunewise.attach(models.make(kind), name, rank=RANK, targets="all-linear")
    loss = model(**models.batch(kind)).loss
    loss.backward()
    del loss
    assert counting.alive() == 0


@pytest.mark.parametrize("fold", ["auto", "never"])
@pytest.mark.parametrize("name", ["cla", "r-cla", "paca", "r-c3la"])
@pytest.mark.parametrize("kind", models.NAMES)
def test_a_whole_model_has_the_gradients_of_the_merged_weights(kind, name, fold):
    """All linears of every architecture, in fp64 to 1e-9: grad_B = s (grad W)[:, cols], from autograd on plain W."""
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in models.batch(kind).items()}
    model = tunewise.attach(models.make(kind).double(), name, rank=RANK, targets="all-linear", fold=fold)
    if name == "r-c3la":
        models.stir(model)
        tunewise.restart(model)
    models.stir(model, seed=5)
    model(**inputs).loss.backward()
    state, done = model.state_dict(), tunewise.attachment(model)
    plain = models.make(kind).double()
    for target in done.targets:
        a, b = (state[f"base_model.model.{target.name}.lora_{f}.default.weight"] for f in "AB")
        dense = done.scale * (b @ a)
        weight = plain.get_submodule(target.name).weight
        weight.data += dense if weight.shape == dense.shape and kind != "gpt2" else dense.T
    plain(**inputs).loss.backward()
    for target in done.targets:
        layer = model.get_base_model().get_submodule(target.name)
        columns = layer.lora_A["default"].weight.nonzero()[:, 1]
        gradient = plain.get_submodule(target.name).weight.grad
        gradient = gradient.T if kind == "gpt2" and target.name != "lm_head" else gradient
        expected = done.scale * gradient[:, columns]
        torch.testing.assert_close(layer.lora_B["default"].weight.grad, expected, rtol=1e-9, atol=1e-9)
