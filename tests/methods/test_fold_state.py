"""Folded weights in copies, other dtypes, saved states; and weights that others share."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import tunewise
from contracts import models
from methods.folds import RANK, attach, factors, folded_layers, same_outputs
from tunewise.errors import ModelError, TunewiseError

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
    """The tensors that have requires_grad, from `state_dict`: 2e-6 (paca's W0 + (W - W0) rounds once), or an error."""
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
    torch.testing.assert_close(found, models.logits(source, inputs), rtol=0, atol=2e-6)


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
