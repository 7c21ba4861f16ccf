"""Column methods under autocast, gradient checkpointing, dropout, torch.compile and data parallelism."""

from __future__ import annotations

import copy
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tunewise
from contracts import models

HERE = Path(__file__).parent
RANK = 4


def fails(reason: str) -> Any:
    return pytest.mark.xfail(strict=True, reason=reason)


def attach(name: str = "cla", kind: str = "bert", **options: Any) -> Any:
    options = {"rank": RANK, "targets": "all-linear", **options}
    return tunewise.attach(models.make(kind), name, **options)


def folded_layers(model: Any) -> list[Any]:
    return [m for m in model.modules() if getattr(m, "_fold", None) is not None]


def gradients(model: Any, kind: str) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**models.batch(kind)).loss.backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.requires_grad}


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", ["auto", "never"])
@pytest.mark.parametrize("name", ["cla", "r-c3la", "paca"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_under_autocast_the_gradients_are_those_of_fp32_to_bf16s_accuracy(kind, name, fold):
    """Direction to 0.5 %, in fp32 tensors; training on lowers the loss."""
    model = attach(name, kind, fold=fold)
    models.stir(model)
    exact = gradients(model, kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(model, kind)
        assert all(g.dtype == torch.float32 for g in found.values())
        losses = models.train(model, models.batch(kind), steps=5)
    ours, theirs = (torch.cat([g[key].flatten() for key in exact]) for g in (found, exact))
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.995
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["cla", "paca"])
def test_a_bf16_model_trains_fp32_factors(name):
    """Additive, and on demand folded; gradients to 2 % in direction of the fp32 model's."""
    exact = gradients(attach(name), "bert")
    for fold in ("auto", "always"):
        model = tunewise.attach(
            models.make("bert").to(torch.bfloat16), name, rank=RANK, targets="all-linear", fold=fold
        )
        found = gradients(model, "bert")
        assert bool(folded_layers(model)) == (fold == "always")
        keys = [key for key in exact if "lora_B" in key]
        assert all(found[key].dtype == torch.float32 for key in keys)
        ours, theirs = (torch.cat([g[key].flatten() for key in keys]) for g in (found, exact))
        assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.98


# --- checkpointing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["cla", "r-cla", "r-c3la", "paca"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_gradient_checkpointing_gives_the_same_gradients(kind, name, reentrant):
    """1e-6; in the second link too."""
    model = attach(name, kind).train()
    for link in range(2 if tunewise.CATALOG[name].chain is not None else 1):
        if link:
            tunewise.restart(model)
        models.stir(model, seed=link)
        expected = gradients(model, kind)
        twin = copy.deepcopy(model)
        twin.enable_input_require_grads()
        twin.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        found = gradients(twin, kind)
        assert folded_layers(twin)
        assert set(found) == set(expected)
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-6)


# --- dropout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cla", "r-c3la", "paca"])
def test_dropout_takes_the_additive_path_and_trains(name):
    """W is never written; in eval mode the outputs are the merged weights' to 1e-5."""
    model, inputs = attach(name, dropout=0.3), models.batch("bert")
    base = models.make("bert")
    model.train()
    torch.manual_seed(0)
    losses = models.train(model, inputs, steps=12)
    if name == "r-c3la":
        tunewise.restart(model)
        models.train(model, inputs, steps=2)
    assert min(losses[-3:]) < 0.9 * losses[0]
    assert not folded_layers(model)
    for target in tunewise.attachment(model).targets:
        weight = model.get_base_model().get_submodule(target.name).get_base_layer().weight
        assert torch.equal(weight, base.get_submodule(target.name).weight)
    expected = models.logits(model, inputs)
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(models.logits(merged, inputs), expected, rtol=0, atol=1e-5)


def test_dropout_drops_columns_of_the_input_at_its_rate():
    """p = 0.25 on x = 1, s B = 1: each row's output is 4/3 x its kept columns; mean r to 3 % over 20,000 rows."""
    net = torch.nn.Sequential(torch.nn.Linear(8, 1, bias=False))
    net[0].weight.data.zero_()
    model = tunewise.attach(net, "cla", rank=RANK, targets=["0"], dropout=0.25).train()
    layer = model.get_base_model()[0]
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(1 / layer.scaling["default"])
    torch.manual_seed(0)
    y = model(torch.ones(20_000, 8)).detach()
    levels = torch.unique(torch.round(y * 0.75))
    assert torch.equal(levels, torch.arange(RANK + 1.0))
    assert float(y.mean()) == pytest.approx(RANK, rel=0.03)


def test_dropout_is_in_force_after_loading_to_train_on(tmp_path):
    tunewise.save(attach("cla", dropout=0.3), tmp_path / "adapter")
    loaded = tunewise.load(models.make("bert"), tmp_path / "adapter", trainable=True)
    assert loaded.peft_config["default"].lora_dropout == 0.3


# --- torch.compile ---------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model: Any, **options: Any) -> Any:
    return torch.compile(model, backend="aot_eager", **options)


def small(name: str = "cla", **options: Any) -> Any:
    """Two adapted layers: compiled in a moment."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 16))
    return tunewise.attach(net, name, rank=RANK, targets=["0", "2"], **options)


INPUT = torch.randn(6, 16, generator=torch.Generator().manual_seed(1))


def small_losses(model: Any, own: Any, steps: int = 3) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in own.parameters() if p.requires_grad], lr=1e-2, fused=True)
    losses = []
    for _ in range(steps):
        loss = model(INPUT).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("name", "fold"), [("cla", "auto"), ("r-c3la", "auto"), ("c-paca", "auto"), ("r-c3la", "never"), ("paca", "never")]
)
def test_compiled_in_one_graph_the_losses_are_the_same(name, fold):
    """Three steps in every one of three links, fullgraph, to 1e-6."""
    plain = small(name, fold=fold)
    own = copy.deepcopy(plain)
    fast = compiled(own, fullgraph=True)
    for link in range(3 if tunewise.CATALOG[name].chain is not None else 1):
        if link:
            tunewise.restart(plain)
            tunewise.restart(fast)
        assert small_losses(fast, own) == pytest.approx(small_losses(plain, plain), abs=1e-6)
        assert bool(folded_layers(own)) == (fold == "auto")


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(("kind", "name"), [("bert", "r-c3la"), ("gpt2", "cla"), ("llama", "paca"), ("vit", "cla")])
def test_a_compiled_transformer_has_the_same_losses_over_three_steps(kind, name):
    """To 1e-6; all but GPT-2, whose loss logs a warning, in one graph."""
    plain = attach(name, kind)
    own = copy.deepcopy(plain)
    fast = compiled(own, fullgraph=kind != "gpt2")
    expected = models.train(plain, models.batch(kind), steps=3)
    assert models.train(fast, models.batch(kind), steps=3) == pytest.approx(expected, abs=1e-6)
    assert folded_layers(own)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_model_moved_after_attaching_is_folded_when_compiled():
    """The usual order: attach, to the device, compile."""
    model = small().double()
    compiled(model)(INPUT.double())
    assert folded_layers(model)


def two_adapters() -> tuple[Any, dict[str, torch.Tensor]]:
    """A column adapter "default" and a lora "other", and each one's outputs, uncompiled; "default" is folded."""
    model = small("cla").eval()
    models.stir(model, seed=1)
    model = tunewise.attach(model, "lora", rank=RANK, targets=["0", "2"], adapter_name="other").eval()
    models.stir(model, seed=2)
    outputs = {}
    with torch.no_grad():
        with model.disable_adapter():
            outputs["__base__"] = model(INPUT)
        for name in ("other", "default"):
            model.set_adapter(name)
            outputs[name] = model(INPUT)
    return model, outputs


@pytest.mark.usefixtures("fresh_compiler")
def test_switching_adapters_under_compile_switches_the_function():
    """1e-6 against the uncompiled outputs."""
    model, expected = two_adapters()
    fast = compiled(model)
    with torch.no_grad():
        for name in ("default", "other", "default"):
            model.set_adapter(name)
            torch.testing.assert_close(fast(INPUT), expected[name], rtol=0, atol=1e-6)


@pytest.mark.usefixtures("fresh_compiler")
def test_disabling_under_compile_gives_the_base():
    """1e-6, and back."""
    model, expected = two_adapters()
    fast = compiled(model)
    with torch.no_grad():
        fast(INPUT)
        with model.disable_adapter():
            torch.testing.assert_close(fast(INPUT), expected["__base__"], rtol=0, atol=1e-6)
        torch.testing.assert_close(fast(INPUT), expected["default"], rtol=0, atol=1e-6)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_mixed_batch_under_compile_uses_each_rows_own_adapter():
    """1e-6 against the uncompiled outputs, or an error."""
    model, expected = two_adapters()
    names = ["default", "other", "__base__", "other", "default", "__base__"]
    with torch.no_grad():
        found = compiled(model)(INPUT, adapter_names=names)
    for row, name in enumerate(names):
        torch.testing.assert_close(found[row], expected[name][row], rtol=0, atol=1e-6)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    "change",
    [
        pytest.param("by hand", marks=fails("a compiled forward does not look at version counters")),
        "scale",
        "load",
        "merge",
        "restart",
    ],
)
def test_a_change_between_compiled_forwards_is_used(change):
    """1e-5 against the same model uncompiled."""
    model = small("c3la")
    models.stir(model)
    fast = compiled(model)
    with torch.no_grad():
        fast(INPUT)
        if change == "by hand":
            models.stir(model, seed=2)
        elif change == "scale":
            for layer in (model.get_base_model()[0], model.get_base_model()[2]):
                layer.set_scale("default", 0.5)
        elif change == "load":
            other = small("c3la")
            models.stir(other, seed=4)
            model.load_state_dict(other.state_dict())
        elif change == "merge":
            model.merge_adapter()
        else:
            tunewise.restart(model)
        found = fast(INPUT)
        expected = tunewise_outputs(model)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def tunewise_outputs(model: Any) -> torch.Tensor:
    """From the state_dict's factors alone, on a fresh unfolded model."""
    twin = small("c3la", fold="never")
    twin.load_state_dict({key: value for key, value in model.state_dict().items() if "lora_" in key}, strict=False)
    for ours, theirs in zip(twin.modules(), model.modules(), strict=True):
        if hasattr(ours, "scaling"):
            ours.scaling["default"] = theirs.scaling["default"]
    return twin(INPUT)  # type: ignore[no-any-return]


# --- data parallelism ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_what_one_does_on_the_whole_batch(tmp_path):
    """DistributedDataParallel over gloo, a restart in the middle: every tensor of the state to 1e-5."""
    script = HERE / "two_processes.py"
    worker = SimpleNamespace(**runpy.run_path(str(script)))
    ranks = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path / "store"), str(tmp_path / "result")])
        for rank in range(2)
    ]
    assert [process.wait(timeout=240) for process in ranks] == [0, 0]
    found = torch.load(tmp_path / "result")
    for name in worker.METHODS:
        expected = worker.train(name, 0, 1)
        assert set(found[name]) == set(expected)
        for key, tensor in expected.items():
            torch.testing.assert_close(found[name][key], tensor, rtol=0, atol=1e-5)
