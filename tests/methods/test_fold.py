"""A folded weight behind PEFT's whole interface: nothing shows outside, and no update of B goes unnoticed."""

from __future__ import annotations

import copy
import functools
import pickle
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils.hotswap import hotswap_adapter
from torch import nn

import tunewise
from tunewise.errors import ModelError, TunewiseError
from tunewise.methods.layer_adapter import ADAPTERS

models = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "contracts" / "models.py")))
RANK = 4


@pytest.fixture(autouse=True)
def deleted_adapters_stay_here() -> Iterator[None]:
    """What a test leaves behind of a deleted adapter does not reach another test's optimizer."""
    yield
    for adapter in list(ADAPTERS):
        if adapter.name not in adapter.layer.lora_B:
            ADAPTERS.discard(adapter)


def fails(reason: str) -> Any:
    return pytest.mark.xfail(strict=True, reason=reason)


def attach(name: str = "cla", kind: str = "gpt2", model: Any = None, **options: Any) -> Any:
    return tunewise.attach(models.make(kind) if model is None else model, name, rank=RANK, **options)


def folded_layers(model: Any) -> list[Any]:
    return [m for m in model.modules() if getattr(m, "_fold", None) is not None]


def by_hand(model: Any, kind: str, *adapters: str, weights: dict[str, float] | None = None) -> Any:
    """The plain model with scale * B A of the saved form of each named adapter in its weights."""
    plain, state = models.make(kind), model.state_dict()
    dtype = next(iter(state.values())).dtype
    plain = plain.to(dtype)
    for name in adapters:
        done = tunewise.attachment(model, name)
        for target in done.targets:
            a, b = (state[f"base_model.model.{target.name}.lora_{f}.{name}.weight"] for f in "AB")
            weight = plain.get_submodule(target.name).weight
            dense = done.scale * (weights or {}).get(name, 1.0) * (b.double() @ a.double())
            weight.data += (dense.T if kind == "gpt2" else dense).to(dtype)
    return plain


def same_outputs(model: Any, kind: str, *adapters: str, atol: float = 1e-5) -> None:
    inputs = models.batch(kind)
    expected = models.logits(by_hand(model, kind, *adapters), inputs)
    torch.testing.assert_close(models.logits(model, inputs), expected, rtol=0, atol=atol)


def factors(model: Any) -> list[torch.nn.Parameter]:
    return [p for name, p in model.named_parameters() if "lora_B" in name]


# --- updates are noticed ---------------------------------------------------------------------------------------------


def stepped(make_optimizer: Any) -> Any:
    """Two steps: state that the first one makes is used by the second."""

    def update(model: Any) -> None:
        optimizer = make_optimizer(factors(model))

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(**models.batch("gpt2")).loss
            loss.backward()
            return loss

        for _ in range(2):
            if isinstance(optimizer, torch.optim.LBFGS):
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()

    return update


def graded(model: Any) -> list[torch.nn.Parameter]:
    model.zero_grad()
    model(**models.batch("gpt2")).loss.backward()
    return factors(model)


@torch.no_grad()
def by_hand_in_place(model: Any) -> None:
    with torch.enable_grad():
        found = graded(model)
    for p in found:
        p -= 0.5 * p.grad


def through_data(model: Any) -> None:
    for p in graded(model):
        p.data.add_(p.grad, alpha=-0.5)


def data_assigned(model: Any) -> None:
    for p in graded(model):
        p.data = p.data - 0.5 * p.grad


def from_one_vector(model: Any) -> None:
    flat = nn.utils.parameters_to_vector(factors(model))
    nn.utils.vector_to_parameters(flat + 0.1, factors(model))


def fused_function(model: Any) -> None:
    found = graded(model)
    zeros, ones = ([make(p) for p in found] for make in (torch.zeros_like, torch.ones_like))
    steps = [torch.tensor(1.0) for _ in found]
    options: dict[str, Any] = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "eps": 1e-8}
    with torch.no_grad():
        torch._fused_adamw_(found, ones, zeros, zeros, [], steps, **options, amsgrad=False, maximize=False)


def loaded(model: Any) -> None:
    """Both factors; PEFT's saved form has the slices' blocks in B, and only those are moved."""
    state = {key: value for key, value in model.state_dict().items() if "lora_" in key}
    model.load_state_dict({k: v * 2 if "lora_B" in k else v for k, v in state.items()}, strict=False)


UPDATES = {
    "fused AdamW": stepped(functools.partial(torch.optim.AdamW, lr=0.1, fused=True)),
    "foreach AdamW": stepped(functools.partial(torch.optim.AdamW, lr=0.1, foreach=True)),
    "single AdamW": stepped(functools.partial(torch.optim.AdamW, lr=0.1, foreach=False)),
    "SGD": stepped(functools.partial(torch.optim.SGD, lr=0.5)),
    "fused SGD with momentum": stepped(functools.partial(torch.optim.SGD, lr=0.5, momentum=0.9, fused=True)),
    "Adagrad": stepped(functools.partial(torch.optim.Adagrad, lr=0.1)),
    "Adafactor": stepped(functools.partial(torch.optim.Adafactor, lr=10.0)),
    "LBFGS": stepped(functools.partial(torch.optim.LBFGS, lr=0.1, max_iter=3)),
    "in place, by hand": by_hand_in_place,
    "load_state_dict": loaded,
    "into .data": through_data,
    ".data assigned": data_assigned,
    "vector_to_parameters": from_one_vector,
    "a fused function called by hand": fused_function,
}
UNNOTICED = ["into .data", "a fused function called by hand"]  # `tunewise.refold` is for these


@pytest.mark.parametrize("name", ["cla", "paca"])
@pytest.mark.parametrize(
    "update",
    [
        pytest.param(
            key, marks=fails("a write that moves no version counter is not noticed") if key in UNNOTICED else ()
        )
        for key in UPDATES
    ],
)
def test_the_forward_after_an_update_uses_it(name, update):
    """1e-5 against the merged weights; and the update did something."""
    model, inputs = attach(name), models.batch("gpt2")
    models.stir(model)
    before = models.logits(model, inputs)
    assert folded_layers(model)
    UPDATES[update](model)
    with torch.no_grad():
        assert (models.logits(by_hand(model, "gpt2", "default"), inputs) - before).abs().max() > 1e-2
    same_outputs(model, "gpt2", "default")


@pytest.mark.parametrize("fold", ["auto", "never"])
@pytest.mark.parametrize(
    ("name", "links"), [("cla", 1), ("paca", 1), pytest.param("c3la", 3, marks=()), pytest.param("c-paca", 3)]
)
def test_another_scale_counts_for_all_links(name, links, fold):
    """PEFT's set_scale, scale_layer and unscale_layer; 1e-5 against the merged weights."""
    model, inputs = attach(name, fold=fold), models.batch("gpt2")
    for link in range(links):
        if link:
            tunewise.restart(model)
        models.stir(model, seed=link)
    layers = [m for m in model.modules() if hasattr(m, "set_scale")]
    models.logits(model, inputs)
    for factor, change in (
        (0.5, lambda layer: layer.set_scale("default", 0.5)),
        (1.5, lambda layer: layer.scale_layer(3.0)),
        (1.0, lambda layer: layer.unscale_layer()),
    ):
        for layer in layers:
            change(layer)
        expected = models.logits(by_hand(model, "gpt2", "default", weights={"default": factor}), inputs)
        torch.testing.assert_close(models.logits(model, inputs), expected, rtol=0, atol=1e-5)


# --- low precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["paca", "c3la"])
def test_a_thousand_steps_in_bf16_do_not_drift(name):
    """Folded on demand: W[:, cols] == round(W0 + s B) to the bit, fp32 factors; the other columns keep their bits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(16, 8)).to(torch.bfloat16)
    start = net[0].weight.detach().clone()
    model = attach(name, model=net, targets=["0"], fold="always")
    layer = model.get_base_model()[0]
    b = layer.lora_B["default"].weight
    assert b.dtype == torch.float32
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    optimizer = torch.optim.AdamW([b], lr=3e-4, fused=True)
    for step in range(1000):
        if name == "c3la" and step == 500:
            tunewise.restart(model, optimizer)
        model(x).float().square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    weight = layer.get_base_layer().weight
    delta = tunewise.delta(model)["0"]
    touched = delta.any(dim=0)
    assert int(touched.sum()) == (2 * RANK if name == "c3la" else RANK)
    assert torch.equal(weight, (start.float() + delta).bfloat16())
    assert torch.equal(weight[:, ~touched], start[:, ~touched])
    assert not torch.equal(weight, start)
    assert torch.equal(model.state_dict()["base_model.model.0.base_layer.weight"], start)


@pytest.mark.parametrize("name", ["cla", "paca"])
def test_bf16_weights_are_left_alone_unless_asked_and_small_updates_count(name):
    """Columns of +1 and -1 moved by 2^-11, an eighth of a bf16 step: exact on the additive path, lost in the weight."""
    found = {}
    for fold in ("auto", "always"):
        net = nn.Sequential(nn.Linear(16, 8, bias=False)).to(torch.bfloat16)
        columns = tunewise.attach(copy.deepcopy(net), name, rank=RANK, targets=["0"]).get_base_model()[0]
        columns = columns.lora_A["default"].weight.nonzero()[:, 1]
        with torch.no_grad():
            net[0].weight.zero_()
            net[0].weight[:, columns] = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.bfloat16)
        start = net[0].weight.detach().clone()
        model = attach(name, model=net, targets=["0"], fold=fold)
        x = torch.zeros(1, 16, dtype=torch.bfloat16)
        x[:, columns] = 1.0
        assert not model(x).any()
        with torch.no_grad():
            for p in factors(model):
                p += 2.0**-11 / tunewise.attachment(model).scale
        found[fold] = model(x).float()
        assert torch.equal(model.get_base_model()[0].get_base_layer().weight, start)
        assert bool(folded_layers(model)) == (fold == "always")
    assert torch.equal(found["auto"], torch.full((1, 8), RANK * 2.0**-11))
    assert not found["always"].any()


# --- several adapters ------------------------------------------------------------------------------------------------


def pair(first: str, second: str, kind: str = "gpt2") -> Any:
    """Two stirred adapters, `first` as "default" and `second` as "other", the second one active; both folded before."""
    model = attach(first, kind)
    models.stir(model, seed=1)
    models.logits(model, models.batch(kind))
    model = attach(second, kind, model=model, adapter_name="other", seed=5)
    models.stir(model, seed=2)
    models.logits(model, models.batch(kind))
    return model


PAIRS = [("cla", "lora"), ("lora", "r-cla"), ("cla", "paca"), ("paca", "r-cla"), ("c3la", "cola"), ("rac", "asym")]


@pytest.mark.parametrize("kind", ["gpt2", "llama-causal"])
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_two_adapters_switch_disable_and_go_without_a_trace(first, second, kind):
    """1e-5 against the merged weights in every state; the base keeps its bits throughout."""
    model, inputs, base = pair(first, second, kind), models.batch(kind), models.make(kind)
    for name in ("other", "default", "other", "default"):
        model.set_adapter(name)
        same_outputs(model, kind, name)
        trained = {key for key, p in model.named_parameters() if p.requires_grad}
        assert trained and all(f".{name}." in key for key in trained)
        one = tunewise.attachment(model, name).method.trained
        assert any("lora_A" in key for key in trained) == (one == "AB")
        with model.disable_adapter():
            torch.testing.assert_close(models.logits(model, inputs), models.logits(base, inputs), rtol=0, atol=1e-6)
        same_outputs(model, kind, name)
    model.base_model.set_adapter(["default", "other"])
    same_outputs(model, kind, "default", "other")
    model.set_adapter("default")
    model.delete_adapter("other")
    same_outputs(model, kind, "default")
    assert bool(folded_layers(model)) == tunewise.attachment(model, "default").method.selects_columns
    plain = model.unload()
    assert all(torch.equal(tensor, base.state_dict()[key]) for key, tensor in plain.state_dict().items())


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_switched_adapter_trains_alone(first, second, kind):
    """Three plain steps on each in turn move that adapter's tensors; the other's, and the base, keep their bits."""
    model = pair(first, second, kind)
    for name, rest in (("other", "default"), ("default", "other")):
        model.set_adapter(name)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        models.train(model, models.batch(kind), steps=3)
        after = model.state_dict()
        moved = {key for key in after if not torch.equal(before[key], after[key])}
        assert moved and all(f".{name}." in key for key in moved)
        assert not any(f".{rest}." in key for key in moved)


def test_training_goes_on_after_an_adapter_is_deleted():
    model = pair("cla", "r-cla")
    model.delete_adapter("other")
    model.set_adapter("default")
    models.train(model, models.batch("gpt2"), steps=1)
    same_outputs(model, "gpt2", "default")


@pytest.mark.parametrize("kind", ["gpt2", "llama-causal"])
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_mixed_batch_uses_each_rows_own_adapter(first, second, kind):
    """`adapter_names=`, the base among them; 1e-5; and afterwards the active adapter is in force again."""
    model, inputs = pair(first, second, kind).eval(), models.batch(kind)
    names = ["other", "__base__", "default", "other"]
    with torch.no_grad():
        found = model(**inputs, adapter_names=names).logits
    for row, name in enumerate(names):
        adapters = [] if name == "__base__" else [name]
        expected = models.logits(by_hand(model, kind, *adapters), inputs)[row]
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-5)
    same_outputs(model, kind, "other")


@pytest.mark.parametrize(
    "name",
    [
        "cla",
        "r-cla",
        pytest.param("paca"),
        pytest.param("c3la"),
        pytest.param("cola"),
    ],
)
@pytest.mark.parametrize("combination", ["cat", "linear"])
def test_a_weighted_sum_of_adapters_is_right_or_refused(name, combination):
    """PEFT's `add_weighted_adapter`, one adapter at weight 1 or with a second one: 1e-4, or an error."""
    model, inputs = attach(name, targets=["c_fc"]), models.batch("gpt2")
    models.stir(model)
    if tunewise.attachment(model).method.chain is not None:
        tunewise.restart(model)
        models.stir(model, seed=7)
    names = ["default"]
    if combination == "cat":
        model = attach("lora", model=model, targets=["c_fc"], adapter_name="other")
        models.stir(model, seed=8)
        names.append("other")
    expected = models.logits(by_hand(model, "gpt2", *names), inputs)
    try:
        model.add_weighted_adapter(names, [1.0] * len(names), "sum", combination_type=combination)
    except (TunewiseError, NotImplementedError, ValueError):
        return
    model.set_adapter("sum")
    torch.testing.assert_close(models.logits(model, inputs), expected, rtol=0, atol=1e-4)


def test_an_adapter_initialised_from_the_weight_sees_the_pristine_one():
    """DoRA's start is the identity on W0, whatever a trained column adapter stands there; 1e-5."""
    model, inputs = attach("cla", targets=["c_fc"]), models.batch("gpt2")
    models.stir(model)
    models.logits(model, inputs)
    model.add_adapter("dora", LoraConfig(r=2, target_modules=["c_fc"], use_dora=True, fan_in_fan_out=True))
    model.set_adapter("dora")
    expected = models.logits(models.make("gpt2"), inputs)
    torch.testing.assert_close(models.logits(model, inputs), expected, rtol=0, atol=1e-5)


@fails("PEFT writes the factors through .data, and the columns they stand for stay the old ones")
def test_a_hotswapped_adapter_is_right_or_refused(tmp_path):
    """PEFT's `hotswap_adapter` with the adapter of another seed, whose columns are others; 1e-5."""
    source = attach("r-cla", targets=["c_fc"], seed=1)
    models.stir(source)
    tunewise.save(source, tmp_path / "adapter")
    model = attach("r-cla", targets=["c_fc"], seed=2)
    models.logits(model, models.batch("gpt2"))
    try:
        hotswap_adapter(model, str(tmp_path / "adapter"), "default")
    except TunewiseError:
        return
    same_outputs(source, "gpt2", "default")
    expected = models.logits(source, models.batch("gpt2"))
    torch.testing.assert_close(models.logits(model, models.batch("gpt2")), expected, rtol=0, atol=1e-5)


# --- a disabled adapter ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cla", "paca", "r-c3la"])
def test_disabling_between_forward_and_backward_leaves_the_gradient_as_it_was(name):
    """A reference pass through the base (as in DPO, or distillation) before the backward: the same bits."""
    gradients = []
    for reference in (False, True):
        model, inputs = attach(name), models.batch("gpt2")
        models.stir(model)
        loss = model(**inputs).loss
        if reference:
            with model.disable_adapter():
                model(**inputs)
        loss.backward()
        gradients.append([p.grad for p in factors(model)])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_disabled_with_gradients_the_base_is_differentiated():
    """The input's gradient through a disabled layer is that of W0; 1e-6."""
    model = tunewise.attach(nn.Sequential(nn.Linear(16, 8)), "cla", rank=RANK, targets=["0"])
    models.stir(model)
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = model.state_dict()["base_model.model.0.base_layer.weight"]
    model(x)
    with model.disable_adapter():
        y = model(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(3, 16), rtol=0, atol=1e-6)


def test_hooks_on_the_base_layer_are_called_whether_the_adapter_is_disabled_or_not():
    model = tunewise.attach(nn.Sequential(nn.Linear(16, 8)), "cla", rank=RANK, targets=["0"])
    calls = []
    model.get_base_model()[0].get_base_layer().register_forward_hook(lambda *_: calls.append(1))
    model(torch.zeros(1, 16))
    with model.disable_adapter():
        model(torch.zeros(1, 16))
    assert len(calls) == 2


# --- merging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("name", ["cla", "r-cla", "c3la", "paca", "c-paca", "cola", "rac"])
def test_merging_and_unmerging_many_times_restores_the_base_bit_for_bit(name, safe):
    model, inputs, base = attach(name), models.batch("gpt2"), models.make("gpt2").state_dict()
    models.stir(model)
    expected = models.logits(model, inputs)
    for _ in range(3):
        model.merge_adapter(safe_merge=safe)
        assert not folded_layers(model)
        torch.testing.assert_close(models.logits(model, inputs), expected, rtol=0, atol=1e-5)
        model.unmerge_adapter()
        for key, tensor in model.state_dict().items():
            if ".base_layer." in key:
                plain = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
                assert torch.equal(tensor, base[plain])
        assert torch.equal(models.logits(model, inputs), expected)


@pytest.mark.parametrize("name", ["cla", "paca", "c3la"])
def test_training_goes_on_after_merging_and_unmerging(name):
    """The same bits as without."""
    results = []
    for between in (False, True):
        model = attach(name)
        models.train(model, models.batch("gpt2"), steps=2)
        if between:
            model.merge_adapter()
            models.logits(model, models.batch("gpt2"))
            model.unmerge_adapter()
        models.train(model, models.batch("gpt2"), steps=2)
        results.append(models.logits(model, models.batch("gpt2")))
    assert torch.equal(*results)


def test_an_adapter_saved_while_it_is_merged_can_be_loaded(tmp_path):
    """As PEFT's can: what is saved is the adapter."""
    model, inputs = attach("cla"), models.batch("gpt2")
    models.stir(model)
    expected = models.logits(model, inputs)
    model.merge_adapter()
    tunewise.save(model, tmp_path / "adapter")
    loaded = tunewise.load(models.make("gpt2"), tmp_path / "adapter")
    torch.testing.assert_close(models.logits(loaded, inputs), expected, rtol=0, atol=1e-5)


# --- copies, dtypes, state -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cla", "r-c3la", "paca", "cola"])
def test_a_deep_copy_trains_by_itself(name):
    """The original keeps its bits, and the copy takes the steps that the original would have taken."""
    model, inputs = attach(name), models.batch("gpt2")
    models.stir(model)
    models.logits(model, inputs)
    twin = copy.deepcopy(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = models.logits(model, inputs)
    models.train(twin, inputs, steps=3)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(models.logits(model, inputs), expected)
    same_outputs(twin, "gpt2", "default")
    models.train(model, inputs, steps=3)
    assert torch.equal(models.logits(model, inputs), models.logits(twin, inputs))
    if tunewise.attachment(model).method.chain is not None:
        tunewise.restart(twin)
        models.stir(twin, seed=9)
        same_outputs(twin, "gpt2", "default")
        same_outputs(model, "gpt2", "default")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lora", "llama-causal"),
        pytest.param("cla", "llama-causal"),
        pytest.param("lora", "gpt2"),
    ],
)
def test_a_model_can_be_pickled(name, kind):
    """As PEFT's can: `torch.save(model)`, spawned processes; the copy computes and trains the same bits."""
    model, inputs = attach(name, kind), models.batch(kind)
    models.stir(model)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(models.logits(again, inputs), models.logits(model, inputs))
    models.train(model, inputs, steps=2)
    models.train(again, inputs, steps=2)
    assert torch.equal(models.logits(again, inputs), models.logits(model, inputs))


@pytest.mark.parametrize("name", ["cla", "r-c3la", "paca", "c-paca"])
def test_a_change_of_dtype_keeps_the_function_and_trains_on(name):
    """To double: 1e-5 of fp32. To bf16: within 0.15 (8 bits); not folded there, and W0 is the rounded W0."""
    model, inputs = attach(name), models.batch("gpt2")
    models.stir(model)
    if tunewise.attachment(model).method.chain is not None:
        tunewise.restart(model)
        models.stir(model, seed=8)
    expected = models.logits(model, inputs)
    wide = copy.deepcopy(model).double()
    torch.testing.assert_close(models.logits(wide, inputs).float(), expected, rtol=0, atol=1e-5)
    assert folded_layers(wide)
    models.train(wide, inputs, steps=2)
    same_outputs(wide, "gpt2", "default", atol=1e-7)  # the merged dense update is in fp64
    narrow = copy.deepcopy(model).to(torch.bfloat16)
    torch.testing.assert_close(models.logits(narrow, inputs).float(), expected, rtol=0, atol=0.15)
    assert not folded_layers(narrow)
    before = {k: v for k, v in models.make("gpt2").to(torch.bfloat16).state_dict().items() if "c_attn.weight" in k}
    losses = models.train(narrow, inputs, steps=5)
    assert losses[-1] < losses[0]
    state = narrow.state_dict()
    for key, tensor in before.items():
        assert torch.equal(state["base_model.model." + key.replace(".weight", ".base_layer.weight")], tensor)


def test_an_average_of_the_weights_over_steps_is_the_average_of_the_factors():
    """torch's `AveragedModel` (EMA, SWA) walks over all parameters, the folded weights too; 1e-5."""
    model, inputs = attach("cla"), models.batch("gpt2")
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    total = [torch.zeros_like(p) for p in factors(model)]
    for step in range(4):
        models.train(model, inputs, steps=1)
        averaged.update_parameters(model)
        for mean, p in zip(total, factors(model), strict=True):
            mean.copy_(p.detach() if step == 0 else 0.5 * mean + 0.5 * p.detach())
    for mean, p in zip(total, factors(averaged), strict=True):
        torch.testing.assert_close(p.detach(), mean, rtol=0, atol=1e-6)
    same_outputs(averaged.module, "gpt2", "default")


@pytest.mark.parametrize("name", ["cla", "c-paca"])
def test_an_evaluation_in_inference_mode_can_come_first(name):
    """The fold made there serves training, restarts, merging and the gradient alike."""
    plain, model = attach(name), attach(name)
    for one in (plain, model):
        one.double()
    with torch.inference_mode():
        model(**models.batch("gpt2"))
        with model.disable_adapter():
            model(**models.batch("gpt2"))
    for link in range(2 if name == "c-paca" else 1):
        for one in (plain, model):
            if link:
                tunewise.restart(one)
        losses = [models.train(one, models.batch("gpt2"), steps=2) for one in (plain, model)]
        assert losses[0] == losses[1]
        with torch.inference_mode():
            model(**models.batch("gpt2"))
    model.merge_adapter()
    model.unmerge_adapter()
    assert torch.equal(models.logits(plain, models.batch("gpt2")), models.logits(model, models.batch("gpt2")))


@pytest.mark.parametrize("keep_vars", [False, True])
@pytest.mark.parametrize("name", ["cla", "c3la", "paca"])
def test_state_dict_holds_the_pristine_base_while_folded(name, keep_vars):
    model, base = attach(name), models.make("gpt2").state_dict()
    models.stir(model)
    models.logits(model, models.batch("gpt2"))
    assert folded_layers(model)
    for key, tensor in model.state_dict(keep_vars=keep_vars).items():
        if ".base_layer." in key:
            plain = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
            assert torch.equal(tensor, base[plain])
            assert not torch.equal(model.get_parameter(key), base[plain]) or "bias" in key


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "cla",
        "r-c3la",
        "cola",
        pytest.param("paca"),
    ],
)
def test_a_whole_state_is_loaded_over_another_base(name, strict, assign):
    """As a training script does that builds a random model first; 1e-6, and the base bit for bit."""
    source, inputs = attach(name), models.batch("gpt2")
    models.stir(source)
    if tunewise.attachment(source).method.chain is not None:
        tunewise.restart(source)
        models.stir(source, seed=8)
    model = attach(name, model=models.make("gpt2", seed=5), seed=3)
    models.logits(model, inputs)
    state = {key: value.clone() for key, value in source.state_dict().items()}
    model.load_state_dict({key: value.clone() for key, value in state.items()}, strict=strict, assign=assign)
    torch.testing.assert_close(models.logits(model, inputs), models.logits(source, inputs), rtol=0, atol=1e-6)
    models.train(model, inputs, steps=1)
    found = model.state_dict()
    assert all(torch.equal(found[key], state[key]) for key in state if "lora_" not in key)


@pytest.mark.parametrize(
    "name",
    [
        "cla",
        "lora",
        "c3la",
        pytest.param("paca"),
    ],
)
def test_a_state_of_the_trained_tensors_alone_is_taken_or_refused(name):
    """The tensors that have requires_grad, from `state_dict`: 1e-6, or an error."""
    source, inputs = attach(name, kind="llama-causal"), models.batch("llama-causal")
    models.stir(source)
    if name == "c3la":
        tunewise.restart(source)
    models.stir(source, only="lora_", seed=8)
    trained = {key for key, p in source.named_parameters() if p.requires_grad}
    state = {key: value for key, value in source.state_dict().items() if key in trained}
    model = attach(name, kind="llama-causal")
    try:
        model.load_state_dict(state, strict=False)
    except (TunewiseError, RuntimeError) as error:
        assert "lora_B" in str(error) or "saved" in str(error)
        return
    found = models.logits(model, inputs)
    torch.testing.assert_close(found, models.logits(source, inputs), rtol=0, atol=1e-6)


def test_weights_read_from_a_file_are_trained_without_touching_the_file(tmp_path):
    """The loader may map the file into memory; folding writes into what it gave."""
    models.make("gpt2").save_pretrained(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    model = attach("cla", model=type(models.make("gpt2")).from_pretrained(tmp_path))
    models.train(model, models.batch("gpt2"), steps=2)
    assert folded_layers(model)
    same_outputs(model, "gpt2", "default")
    assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir()}


def test_new_base_weights_alone_are_taken_over():
    """`load_state_dict` of base weights under a folded adapter: W0 is the new one, the update stays; 1e-5."""
    model, inputs = attach("cla"), models.batch("gpt2")
    models.stir(model)
    models.logits(model, inputs)
    other = models.make("gpt2", seed=5)
    layers = {target.name for target in tunewise.attachment(model).targets}
    names = {}
    for key, value in other.state_dict().items():
        layer, _, leaf = key.rpartition(".")
        names["base_model.model." + (f"{layer}.base_layer.{leaf}" if layer in layers else key)] = value
    model.load_state_dict(names, strict=False)
    delta = tunewise.delta(model)
    for key, dense in delta.items():
        other.get_submodule(key).weight.data += dense.T
    torch.testing.assert_close(models.logits(model, inputs), models.logits(other, inputs), rtol=0, atol=1e-5)


def test_a_weight_that_is_to_be_trained_is_not_written():
    """All weights made trainable after attaching: unfolded, W gets its gradient, 1e-5 against the dense layer."""
    model = tunewise.attach(nn.Sequential(nn.Linear(16, 8)), "cla", rank=RANK, targets=["0"])
    models.stir(model)
    layer = model.get_base_model()[0]
    start = model.state_dict()["base_model.model.0.base_layer.weight"].clone()
    layer.get_base_layer().weight.requires_grad_(True)
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    model(x).sum().backward()
    assert not folded_layers(model)
    assert torch.equal(layer.get_base_layer().weight, start)
    torch.testing.assert_close(layer.get_base_layer().weight.grad, x.sum(0).expand(8, 16), rtol=0, atol=1e-5)


# --- tied weights ----------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """Two layers over one weight: one module's parameter is the other's, or a view of the same storage."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.adapted, self.other = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        if how == "parameter":
            self.other.weight = self.adapted.weight
        elif how == "storage":
            self.other.weight.data = self.adapted.weight.data
        else:
            both = torch.randn(16, 8)
            self.adapted.weight.data, self.other.weight.data = both[:8], both[4:12]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.adapted(x), self.other(x)])


@pytest.mark.parametrize("name", ["cla", "paca", "c3la"])
@pytest.mark.parametrize("how", ["parameter", "storage", "overlapping storage"])
def test_a_tied_weight_is_adapted_in_the_asked_place_alone(how, name):
    """The other use of the weight keeps its outputs, to the bit, and the adapted one gets its update."""
    net = Tied(how)
    x = torch.randn(3, 8)
    before = net(x).detach()
    model = tunewise.attach(net, name, rank=RANK, targets=["adapted"])
    models.stir(model)
    after = model(x).detach()
    assert torch.equal(after[3:], before[3:])
    assert not torch.allclose(after[:3], before[:3])


def test_the_embeddings_under_an_adapted_language_model_head_keep_their_bits():
    base = models.make("gpt2")
    table = base.transformer.wte.weight.detach().clone()
    model = tunewise.attach(base, "cla", rank=RANK, targets=["lm_head"])
    models.stir(model)
    models.logits(model, models.batch("gpt2"))
    assert torch.equal(base.transformer.wte.weight, table)


def test_folding_a_tied_weight_on_demand_is_refused_by_name():
    with pytest.raises(ModelError, match="adapted.*fold='auto'"):
        tunewise.attach(Tied("parameter"), "cla", rank=RANK, targets=["adapted"], fold="always")
