"""What every method promises, whatever it is: each row of the catalog on four architectures.

A new row of the catalog gets the whole suite for free. q and v are adapted; GPT-2's are slices of a fused projection.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel

import tunewise
from contracts import fresh_process as fresh
from contracts import models
from tunewise import CATALOG, Chain, Method, OptimizerRule
from tunewise.errors import ModelError, SpecError
from tunewise.methods.attachment import layer_adapters
from tunewise.methods.one_step import GAMMA
from tunewise.models.layers import linear_layers

HERE = Path(__file__).parent


RANK = 4
KINDS = ["bert", "gpt2", "llama", "vit"]
NOT_OFFERED = {("head", "gpt2")}  # a language model has no task head
TARGETS = {("cla-rows", "gpt2"): ["c_fc"]}  # rows of a fused projection are refused


def targets_of(name: str, kind: str) -> Any:
    return TARGETS.get((name, kind), "qv")


def combinations(*, adapters: bool = False) -> Any:
    """(method, model) over the catalog, as pytest parameters; only methods with an adapter where asked."""
    return pytest.mark.parametrize(
        ("name", "kind"),
        [
            pytest.param(name, kind, id=f"{name}-{kind}")
            for name, method in CATALOG.items()
            for kind in KINDS
            if (name, kind) not in NOT_OFFERED and (method.adapts or not adapters)
        ],
    )


def attach(name: str | Method, kind: str, **options: Any) -> Any:
    method = CATALOG[name] if isinstance(name, str) else name
    if method.start == "gradient":
        options.setdefault("batches", [models.batch(kind, seed=7)])
    options.setdefault("targets", targets_of(method.name, kind))
    return tunewise.attach(models.make(kind), name, rank=RANK, **options)


@functools.cache
def trained(name: str, kind: str) -> SimpleNamespace:
    """A model of which plain AdamW has taken two steps, and what it was before. Not to be changed: copy it."""
    return stepped(attach(name, kind), kind)


def stepped(model: Any, kind: str) -> SimpleNamespace:
    """Two steps of plain AdamW; `felt`: what got a gradient other than 0; `finite`: whether all gradients were."""
    saved = {key: value.clone() for key, value in model.state_dict().items()}
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    wanted = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(wanted, lr=1e-2, fused=True)
    felt, finite = set(), True
    for _ in range(2):
        model(**models.batch(kind)).loss.backward()
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        felt |= {key for key, gradient in gradients.items() if bool(gradient.any())}
        finite &= all(bool(gradient.isfinite().all()) for gradient in gradients.values())
        optimizer.step()
        optimizer.zero_grad()
    return SimpleNamespace(model=model, saved=saved, before=before, felt=felt, finite=finite)


def is_base(key: str) -> bool:
    return "lora_" not in key and "modules_to_save" not in key


# --- attaching -------------------------------------------------------------------------------------------------------


@combinations()
def test_attaching_leaves_the_outputs_as_they_are(name, kind):
    """To 1e-6 in fp32; lora-one: the outputs of W0 + the best rank-r step of one full gradient, to 1e-4."""
    base, inputs = models.make(kind), models.batch(kind)
    expected = models.logits(base, inputs)
    if CATALOG[name].start == "gradient":
        expected = models.logits(stepped_densely(kind, CATALOG[name].scale(RANK, 2 * RANK)), inputs)
    found = models.logits(attach(name, kind), inputs)
    tolerance = 1e-4 if CATALOG[name].start == "gradient" else 1e-6
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
        for start, stop in target.parts:
            u, s, vh = torch.linalg.svd(-gradient[start:stop])
            rows[start:stop] += scale / GAMMA * u[:, :RANK] @ torch.diag(s[:RANK] / s[0]) @ vh[:RANK]
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
    }[CATALOG[name].trained]
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
    losses = models.train(model, models.batch(kind), steps=11, only="lora_" if CATALOG[name].adapts else "")
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
    the same bits for what tunewise merges (PEFT subtracts for plain low-rank layers: 1e-6)."""
    run, base = trained(name, kind), models.make(kind).state_dict()
    delta = tunewise.delta(run.model)
    model, head = copy.deepcopy(run.model), tunewise.attachment(run.model).head
    inputs = models.batch(kind)
    expected = models.logits(model, inputs)
    model.merge_adapter()
    torch.testing.assert_close(models.logits(model, inputs), expected, rtol=0, atol=1e-5)
    model.unmerge_adapter()
    for key, tensor in model.state_dict().items():
        if is_base(key) and layer_adapters(model):
            assert torch.equal(tensor, run.saved[key]), key
        elif is_base(key):
            torch.testing.assert_close(tensor, run.saved[key], rtol=0, atol=1e-6)
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
        if CATALOG[name].selects_columns:
            assert int(delta[layer].any(dim=0).sum()) == RANK * (2 if kind == "gpt2" and distinct(name) else 1)
            assert torch.equal(tensor[dense == 0], base[key][dense == 0])


def distinct(name: str) -> bool:
    """Whether the slices of one fused projection have columns of their own."""
    return CATALOG[name].where == "sampled"


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


# --- saving ----------------------------------------------------------------------------------------------------------


@combinations()
def test_saved_and_loaded_it_computes_the_same(name, kind, tmp_path):
    """To 1e-5, for use and for training on; a chain with two finished links behind the active one."""
    model = grown(name, kind)
    folder = tunewise.save(model, tmp_path / "adapter")
    expected = models.logits(model, models.batch(kind))
    for trainable in (False, True):
        loaded = tunewise.load(models.make(kind), folder, trainable=trainable)
        torch.testing.assert_close(models.logits(loaded, models.batch(kind)), expected, rtol=0, atol=1e-5)
        assert (tunewise.trainable_parameters(loaded) > 0) == trainable
    assert tunewise.trainable_parameters(loaded) == tunewise.trainable_parameters(model)
    method = tunewise.attachment(loaded).method
    assert (method.trained, method.where, method.chain, method.start) == (
        (CATALOG[name].trained, CATALOG[name].where, CATALOG[name].chain, CATALOG[name].start)
    )


@functools.cache
def grown(name: str, kind: str) -> Any:
    """Trained for two steps; a chain for two more in each of two further links."""
    model = copy.deepcopy(trained(name, kind).model)
    if CATALOG[name].chain is not None:
        for _ in range(2):
            tunewise.restart(model)
            models.train(model, models.batch(kind), steps=2)
    return model


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """What a fresh process finds for every combination: stock PEFT's logits, tunewise's digests."""
    folder = tmp_path_factory.mktemp("elsewhere")
    cases: dict[str, dict[str, Any]] = {"stock": {}, "built": {}}
    for name, method in CATALOG.items():
        for kind in KINDS:
            if (name, kind) in NOT_OFFERED:
                continue
            key = f"{name} {kind}"
            cases["built"][key] = (kind, name, targets_of(name, kind))
            if method.adapts:
                saved = tunewise.save(grown(name, kind), folder / key.replace(" ", "_"))
                cases["stock"][key] = (kind, str(saved))
    (folder / "cases.json").write_text(json.dumps(cases))
    subprocess.run(
        [sys.executable, str(HERE / "fresh_process.py"), str(folder / "cases.json"), str(folder / "results.json")],
        check=True,
        timeout=300,
    )
    return json.loads((folder / "results.json").read_text())


@combinations(adapters=True)
def test_stock_peft_in_a_fresh_process_computes_the_same(name, kind, elsewhere):
    """To 1e-5, from the folder alone, and tunewise is not imported there."""
    assert not elsewhere["tunewise imported by stock loading"]
    found = torch.tensor(elsewhere["logits"][f"{name} {kind}"])
    torch.testing.assert_close(found, models.logits(grown(name, kind), models.batch(kind)), rtol=0, atol=1e-5)


# --- randomness ------------------------------------------------------------------------------------------------------


@combinations()
def test_two_processes_build_and_train_the_same_bits(name, kind, elsewhere):
    assert fresh.digests(kind, name, targets_of(name, kind)) == elsewhere["digests"][f"{name} {kind}"]


DRAWING = [name for name, method in CATALOG.items() if method.where in ("random", "sampled")]


def row_spaces(model: Any) -> dict[str, torch.Tensor]:
    return {key: p.detach().clone() for key, p in model.named_parameters() if "lora_A" in key}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DRAWING)
def test_another_seed_layer_or_link_draws_another_row_space(name, kind):
    first, again, other = (row_spaces(attach(name, kind, seed=seed)) for seed in (0, 0, 1))
    drawn = list(first.values())
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)
    assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    if kind == "gpt2":  # the slices of one projection too
        assert not any(torch.equal(a[:RANK], a[RANK:]) for a in drawn)
    if CATALOG[name].chain is not None:
        model = attach(name, kind)
        tunewise.restart(model)
        after = row_spaces(model)
        assert not any(torch.equal(first[key], after[key]) for key in first)


def test_adapting_more_layers_does_not_change_the_others():
    few, more = (row_spaces(attach("r-cla", "bert", targets=targets)) for targets in ("qv", "all-linear"))
    assert len(more) > len(few) and all(torch.equal(few[key], more[key]) for key in few)


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
        for start, stop in parts[key]:
            assert int(dense[start:stop].any(dim=0).sum()) == min(links * RANK, models.HIDDEN)


# --- methods of one's own --------------------------------------------------------------------------------------------

OWN = {
    "columns at the paper's alpha / r": Method("columns", "sampled"),
    "first columns in a chain": Method("columns", "selector", chain=Chain(links=3), scaling="one"),
    "columns in a chain at alpha / r": Method("columns", "sampled", chain=Chain(links=3)),
    "cla at the root of r": Method("B", "selector", scaling="alpha/sqrt(r)"),
    "a chain of lora at the root of r": Method("AB", "random", chain=Chain(links=3), scaling="alpha/sqrt(r)"),
    "asym with orthonormal rows": Method("B", "random", a_law="orthonormal"),
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


# --- what is saved is stock ------------------------------------------------------------------------------------------


@combinations(adapters=True)
def test_the_saved_config_states_the_rank_and_alpha_of_all_links(name, kind, tmp_path):
    """alpha / rank (or alpha / sqrt(rank)) is the method's scale, and the rank is that of the saved tensors."""
    model = grown(name, kind)
    folder = tunewise.save(model, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    links = 3 if CATALOG[name].chain is not None else 1
    fused = kind == "gpt2" and targets_of(name, kind) == "qv"
    ranks = list(config["rank_pattern"].values()) if fused else [config["r"]]
    alphas = list(config["alpha_pattern"].values()) if fused else [config["lora_alpha"]]
    assert set(ranks) == {links * RANK * (2 if fused else 1)}
    for rank, alpha in zip(ranks, alphas, strict=True):
        scale = alpha / math.sqrt(rank) if config["use_rslora"] else alpha / rank
        assert scale == pytest.approx(CATALOG[name].scale(RANK, 2 * RANK), rel=1e-12)
    assert isinstance(model, PeftModel) and model.peft_config["default"].peft_type == config["peft_type"] == "LORA"
