"""What every method saves and draws: a stock adapter that computes the same elsewhere, of bits that depend on the seed
alone."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

import tunewise
from contracts import fresh_process as fresh
from contracts import models
from contracts.every import KINDS, METHODS, RANK, attach, combinations, grown, targets_of

HERE = Path(__file__).parent


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
        (METHODS[name].trained, METHODS[name].where, METHODS[name].chain, METHODS[name].start)
    )


@pytest.fixture(scope="module")
def elsewhere(request, tmp_path_factory):
    """What a fresh process finds for every combination of this session: stock PEFT's logits, tunewise's digests."""
    folder = tmp_path_factory.mktemp("elsewhere")
    cases: dict[str, dict[str, Any]] = {"stock": {}, "built": {}}
    parameters = [item.callspec.params for item in request.session.items if "elsewhere" in item.fixturenames]
    for name, kind in {(p["name"], p["kind"]) for p in parameters}:
        key = f"{name} {kind}"
        cases["built"][key] = (kind, name, targets_of(name, kind))
        if METHODS[name].adapts:
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


@combinations(adapters=True)
def test_the_saved_config_states_the_rank_and_alpha_of_all_links(name, kind, tmp_path):
    """alpha / rank (or alpha / sqrt(rank)) is the method's scale, and the rank is that of the saved tensors."""
    model = grown(name, kind)
    folder = tunewise.save(model, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    links = 3 if METHODS[name].chain is not None else 1
    fused = kind == "gpt2" and targets_of(name, kind) == "qv"
    ranks = list(config["rank_pattern"].values()) if fused else [config["r"]]
    alphas = list(config["alpha_pattern"].values()) if fused else [config["lora_alpha"]]
    assert set(ranks) == {links * RANK * (2 if fused else 1)}
    for rank, alpha in zip(ranks, alphas, strict=True):
        scale = alpha / math.sqrt(rank) if config["use_rslora"] else alpha / rank
        assert scale == pytest.approx(METHODS[name].scale(RANK, 2 * RANK), rel=1e-12)
    assert isinstance(model, PeftModel) and model.peft_config["default"].peft_type == config["peft_type"] == "LORA"


# --- randomness ------------------------------------------------------------------------------------------------------


@combinations()
def test_two_processes_build_and_train_the_same_bits(name, kind, elsewhere):
    assert fresh.digests(kind, name, targets_of(name, kind)) == elsewhere["digests"][f"{name} {kind}"]


DRAWING = [name for name, method in METHODS.items() if method.where in ("random", "sampled")]


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
    if METHODS[name].chain is not None:
        model = attach(name, kind)
        tunewise.restart(model)
        after = row_spaces(model)
        assert not any(torch.equal(first[key], after[key]) for key in first)


def test_adapting_more_layers_does_not_change_the_others():
    few, more = (row_spaces(attach("r-cla", "bert", targets=targets)) for targets in ("qv", "all-linear"))
    assert len(more) > len(few) and all(torch.equal(few[key], more[key]) for key in few)
