"""What every method promises, whatever it is: each row of the catalog on four architectures.

A new row of the catalog gets the whole suite for free. What is saved is in `test_saved.py`, how methods are related in
`test_kinship.py`.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import tunewise
from contracts import fresh_process as fresh
from contracts import models
from contracts.every import KINDS, METHODS, RANK, attach, combinations, is_base, stepped, trained
from tunewise.errors import ModelError, SpecError
from tunewise.methods.gradient_start import GAMMA
from tunewise.models.layers import linear_layers

# --- attaching -------------------------------------------------------------------------------------------------------


@combinations()
def test_attaching_leaves_the_outputs_as_they_are(name, kind):
    """To 1e-6 in fp32; lora-one: the outputs of W0 + the best rank-r step of one full gradient, to 1e-4."""
    base, inputs = models.make(kind), models.batch(kind)
    expected = models.logits(base, inputs)
    if METHODS[name].start == "gradient":
        expected = models.logits(stepped_densely(kind, METHODS[name].scale(RANK, 2 * RANK)), inputs)
    found = models.logits(attach(name, kind), inputs)
    tolerance = 1e-4 if METHODS[name].start == "gradient" else 1e-6
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def stepped_densely(kind: str, scale: float) -> Any:
    """The base model with s / gamma * U_r (S_r / S_1) V_r^T of its negative gradient added to q and v, in fp64; to
    each slice of a fused projection that of the slice's own gradient."""
    model = models.make(kind).double()
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in models.batch(kind, seed=7).items()}
    model(**inputs).loss.backward()
    for target in tunewise.attachment(attach("cla", kind)).targets:
        weight = model.get_submodule(target.name).weight
        gradient, rows = (tensor.T if kind == "gpt2" else tensor for tensor in (weight.grad, weight.data))
        for part in target.parts:
            u, s, vh = torch.linalg.svd(-gradient[part.indices])
            rows[part.indices] += scale / GAMMA * u[:, :RANK] @ torch.diag(s[:RANK] / s[0]) @ vh[:RANK]
    return model.float()


@combinations()
def test_attaching_neither_reads_nor_moves_the_global_generator(name, kind):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = attach(name, kind)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    second = attach(name, kind)
    assert fresh._digest(first) == fresh._digest(second)


# A, B and the head's numbers for rank 4 on q and v of every layer, and all of the model's.
COUNTS = {
    "bert": {"A": 512, "B": 512, "head": 99, "all": 19_619},
    "gpt2": {"A": 512, "B": 512, "head": 0, "all": 18_400},
    "llama": {"A": 512, "B": 384, "head": 96, "all": 17_664},
    "vit": {"A": 512, "B": 512, "head": 99, "all": 21_539},
}


@combinations()
def test_exactly_these_parameters_are_trained(name, kind):
    count = COUNTS[kind]
    expected = {
        "all": count["all"],
        "head": count["head"],
        "AB": count["A"] + count["B"] + count["head"],
        "B": count["B"] + count["head"],
        "columns": count["B"] + count["head"],
        "A": (256 if kind == "gpt2" else count["A"]) + count["head"],
    }[METHODS[name].trained]
    model = attach(name, kind)
    assert tunewise.trainable_parameters(model) == expected
    optimizer = tunewise.optimizer(model, lr=1e-3)
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == expected


def test_a_method_without_anything_to_train_is_refused():
    with pytest.raises(ModelError, match="head"):
        tunewise.attach(models.make("gpt2"), "head")


def test_rows_of_a_fused_projection_are_refused_with_the_way_out():
    with pytest.raises(ModelError, match=r"c_attn.*'cla'"):
        tunewise.attach(models.make("gpt2"), "cla-rows", rank=2)


# --- training --------------------------------------------------------------------------------------------------------


@combinations()
def test_two_plain_steps_move_every_trained_tensor_and_nothing_else(name, kind):
    """Every trained tensor had a finite gradient and moved, without an exception in these architectures (where B starts
    at 0, A moves in the second step). All the rest, the base under a fold included: same bits."""
    run = trained(name, kind)
    after = dict(run.model.named_parameters())
    moving = {key for key, p in after.items() if p.requires_grad}
    assert moving and run.felt == moving and run.finite
    assert not any(torch.equal(run.before[key], after[key]) for key in moving)
    state = run.model.state_dict()
    assert set(state) == set(run.saved)
    tied = {key for key, p in run.model.named_parameters(remove_duplicate=False) if p.requires_grad}
    for key in set(state) - tied:
        assert torch.equal(state[key], run.saved[key]), key


@combinations()
def test_two_steps_under_gradient_checkpointing_are_the_same_bit_for_bit(name, kind):
    """What moves, what does not, and where to. The layers' forwards really run twice a step."""
    model = attach(name, kind)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    forwards = []
    some_layer = next(m for key, m in model.named_modules() if key.endswith(("attention", "attn")))
    some_layer.register_forward_pre_hook(lambda *_: forwards.append(1))
    run, usual = stepped(model, kind), trained(name, kind)
    assert len(forwards) == 4 or name == "head"  # under which nothing needs to be computed again
    assert run.felt == usual.felt and run.finite
    state, expected = model.state_dict(), usual.model.state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[key], expected[key]) for key in state)


@combinations()
def test_the_adapter_alone_lowers_the_loss(name, kind):
    """10 steps at 1e-2 without the head: at least a tenth lower on the batch it is trained on."""
    model = attach(name, kind)
    losses = models.train(model, models.batch(kind), steps=11, only="lora_" if METHODS[name].adapts else "")
    assert losses[-1] < 0.9 * losses[0]


@combinations(adapters=True)
def test_disabling_the_adapter_gives_the_base_model_after_training(name, kind):
    """1e-6; and W0 keeps its bits."""
    run = trained(name, kind)
    inputs = models.batch(kind)
    with run.model.disable_adapter():
        found = models.logits(run.model, inputs)
    torch.testing.assert_close(found, models.logits(models.make(kind), inputs), rtol=0, atol=1e-6)
    frozen = {key: p.requires_grad for key, p in run.model.named_parameters()}
    assert {key for key, flag in frozen.items() if flag} == run.felt


@combinations(adapters=True)
def test_unloading_gives_the_base_back_bit_for_bit(name, kind):
    base, model = models.make(kind).state_dict(), copy.deepcopy(trained(name, kind).model).unload()
    for key, tensor in model.state_dict().items():
        if not key.startswith(tuple(tunewise.attachment(trained(name, kind).model).head)):
            assert torch.equal(tensor, base[key]), key


@combinations(adapters=True)
def test_merging_adds_delta_and_unmerging_takes_it_back(name, kind):
    """merged = base + delta to 1e-6, elsewhere the same bits; columns nobody trained keep their bits too. Unmerged:
    the same bits."""
    run, base = trained(name, kind), models.make(kind).state_dict()
    delta = tunewise.delta(run.model)
    model, head = copy.deepcopy(run.model), tunewise.attachment(run.model).head
    inputs = models.batch(kind)
    expected = models.logits(model, inputs)
    model.merge_adapter()
    torch.testing.assert_close(models.logits(model, inputs), expected, rtol=0, atol=1e-5)
    model.unmerge_adapter()
    for key, tensor in model.state_dict().items():
        if is_base(key):
            assert torch.equal(tensor, run.saved[key]), key
    merged = model.merge_and_unload()
    torch.testing.assert_close(models.logits(merged, inputs), expected, rtol=0, atol=1e-5)
    for key, tensor in merged.state_dict().items():
        layer = key.removesuffix(".weight")
        if key.startswith(tuple(head)):
            continue
        if layer not in delta:
            assert torch.equal(tensor, base[key]), key
            continue
        dense = delta[layer].T if kind == "gpt2" else delta[layer]
        torch.testing.assert_close(tensor, base[key] + dense, rtol=0, atol=1e-6)
        if METHODS[name].selects_columns:
            assert int(delta[layer].any(dim=0).sum()) == RANK * (2 if kind == "gpt2" and distinct(name) else 1)
            assert torch.equal(tensor[dense == 0], base[key][dense == 0])


def distinct(name: str) -> bool:
    """Whether the slices of one fused projection have columns of their own."""
    return METHODS[name].where == "sampled"


@pytest.mark.parametrize("kind", KINDS)
def test_full_fine_tuning_tells_its_delta_against_a_base(kind):
    run = trained("fft", kind)
    base = models.make(kind)
    delta = tunewise.delta(run.model, base=base)
    assert set(delta) == set(linear_layers(base))
    key = next(iter(delta))
    before, after = base.get_submodule(key).weight, run.model.get_submodule(key).weight
    dense = (after - before).detach()
    assert torch.equal(delta[key], dense.T if kind == "gpt2" else dense)
    with pytest.raises(SpecError, match="base="):
        tunewise.delta(run.model)
