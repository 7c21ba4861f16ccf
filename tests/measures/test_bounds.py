"""The bounds of real runs: norms and gaps against dense recomputation, numbers against the calculators."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from finished_runs import finished
from tunewise.catalog import get_method
from tunewise.errors import SpecError
from tunewise.measures._linalg import spectral_norm
from tunewise.measures.bounds import compute as module
from tunewise.measures.bounds.clipping import clip_range, clipped_gap
from tunewise.measures.bounds.compute import BoundsResult, bounds_of_run, facts_of_run
from tunewise.measures.bounds.theorems import Facts, FrozenFactor, LayerNorms, counted_parameters, theorems
from tunewise.measures.finished import FinishedRun, no_check
from tunewise.methods.delta import delta
from tunewise.theory import hoeffding, information_bound, pac_bayes, perturbation, random_factor_upper


def bounds(one: FinishedRun) -> BoundsResult:
    return bounds_of_run(one, no_check)


def norms(name: str, side: int, base: float, update: float, frobenius: float) -> LayerNorms:
    return LayerNorms(name=name, shape=(side, side), base=base, update=update, frobenius=frobenius)


VIT = [norms(f"layer.{i}", 768, 20.0, 0.5, 1.0) for i in range(24)]


def facts(method: str = "cla", **changes: Any) -> Facts:
    known = {
        "layers": VIT, "method": get_method(method), "rank": 16, "alpha": 32.0, "links": None, "parameters": 1,
        "head": 0, "input_bound": 2.0, "input_bound_source": "given", "samples": 50_000, "classes": 10,
        "loss_range": 2.0, **changes,
    }  # fmt: skip
    return Facts(**known)


def test_the_papers_example() -> None:
    """ViT-Base, q and v, rank 16, 50,000 samples, sigma 1: 16.2, vacuous, expected gap."""
    lines = {line.key: line for line in theorems(facts())}
    assert lines["information"].value == pytest.approx(16.2, abs=0.05)
    assert lines["information"].vacuous
    assert lines["parameters"].value == 24 * 16 * 768
    assert lines["information"].unmet == ()
    with_head = {line.key: line for line in theorems(facts(head=7690))}
    assert "7,690 parameters" in with_head["information"].unmet[0]
    grown = 24 * 16 * 768 + 7690
    assert with_head["information-head"].value == float(information_bound(grown, 50_000))


def test_totals_are_sums_of_their_parts() -> None:
    lines = {line.key: line for line in theorems(facts())}
    phi = perturbation([20.0] * 24, [0.5] * 24, 2.0, math.sqrt(2))
    assert lines["phi-dw"].log_value == pytest.approx(phi.phi_dw.log_value)
    assert lines["phi-w0+information"].log_value == pytest.approx(
        (phi.phi_w0 + information_bound(24 * 16 * 768, 50_000)).log_value
    )
    assert lines["theorem-6-hoeffding"].log_value == pytest.approx(
        (phi.phi_dw + hoeffding(50_000, loss_range=2.0)).log_value
    )
    assert lines["theorem-6"].value >= lines["theorem-6-hoeffding"].value
    for key in ("phi-dw", "phi-w0", "theorem-6", "pac-bayes"):
        assert any("transformer" in reason for reason in lines[key].unmet)


def test_pac_bayes_of_cross_entropy_is_that_of_a_scaled_loss() -> None:
    found = next(line for line in theorems(facts()) if line.key == "pac-bayes")
    slope = math.sqrt(2)
    scaled = pac_bayes([20.0] * 24, [1.0] * 24, 2.0, 768, 50_000, epsilon=0.1 / slope, loss_range=2.0 / slope)
    assert found.log_value == pytest.approx(scaled.log_value + math.log(slope))
    assert found.ceiling == 2.0


def test_numbers_beyond_the_floats_are_kept_as_logarithms() -> None:
    deep = [norms(str(i), 64, 1e3, 10.0, 20.0) for i in range(400)]
    lines = {line.key: line for line in theorems(facts(layers=deep))}
    assert lines["phi-dw"].value is None
    assert lines["phi-dw"].log_value == pytest.approx(perturbation(1e3, [10.0] * 400, 2.0, 2**0.5)[0].log_value)
    lines["phi-dw"].model_dump_json()


def test_only_what_the_facts_are_enough_for() -> None:
    keys = [line.key for line in theorems(facts(samples=None, classes=None, loss_range=None))]
    assert keys == ["parameters", "phi-dw", "phi-w0"]
    keys = [line.key for line in theorems(facts("head", layers=[], parameters=0, head=30))]
    assert keys == ["parameters", "information", "information-head", "hoeffding"]
    assert "safe-step" not in [line.key for line in theorems(facts("lora", curvature=10.0))]
    step = next(line for line in theorems(facts("cla", curvature=10.0)) if line.key == "safe-step")
    assert step.value == pytest.approx(2 * 16**2 / (10.0 * 32**2))
    step = next(line for line in theorems(facts("paca", curvature=10.0)) if line.key == "safe-step")
    assert step.value == pytest.approx(2 / 10.0)
    with pytest.raises(SpecError, match="no range"):
        theorems(facts(loss_range=None))


def test_the_random_factors_bound_is_the_calculators() -> None:
    frozen = FrozenFactor(rank=16, scale=2.0, std=[0.02] * 24, radius=1.5, gaussian=False)
    lines = {line.key: line for line in theorems(facts("asym", frozen=frozen))}
    expected = random_factor_upper(
        20.0, [(768, 768)] * 24, 16, 32.0, 0.02, 1.5, 2.0, 50_000, 2.0, math.sqrt(2), delta=0.025, factor_delta=0.025
    )
    assert lines["random-factor-upper"].value == pytest.approx(float(expected))
    assert any("not Gaussian" in reason for reason in lines["random-factor-upper"].unmet)
    assert any("0.95" in assumption for assumption in lines["random-factor-upper"].assumptions)


def test_a_clipped_gap_is_that_of_the_clipped_losses() -> None:
    generator = np.random.default_rng(0)
    train, test = generator.exponential(0.5, 400), generator.exponential(1.0, 300)
    found = clipped_gap(train, test, clip_range(3))
    clip = [np.minimum(losses, math.log(3)) for losses in (train, test)]
    assert found.gap == pytest.approx(clip[1].mean() - clip[0].mean(), abs=1e-12)
    assert found.error == pytest.approx(math.sqrt(clip[0].var(ddof=1) / 400 + clip[1].var(ddof=1) / 300), rel=1e-12)
    assert found.clipped == np.mean(test > math.log(3))
    assert 0 <= found.train <= found.range


@pytest.mark.parametrize("method", ["lora", "c3la", "fft", "peft:dora"])
def test_norms_of_a_run_are_those_of_dense_matrices(
    method: str, tiny_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    """Dense fp64 singular values of W0 and of the dW in the trained model."""
    one = finished(tiny_model, toy_csv, tmp_path, method)
    found = {layer.name: layer for layer in facts_of_run(one, lambda: None).layers}
    dense = delta(one.model, one.task.load_model(one.spec.seed))
    assert len(found) >= 4
    for name, layer in found.items():
        weight = one.base.get_submodule(name).weight.detach().double()
        values = torch.linalg.svdvals(dense[name].double())
        assert layer.base == pytest.approx(float(torch.linalg.matrix_norm(weight, 2)), rel=3e-6)
        assert layer.update == pytest.approx(float(values[0]), rel=1e-4)
        assert layer.frobenius == pytest.approx(float(values.norm()), rel=1e-4)
        assert layer.shape == tuple(weight.shape)


def test_the_gap_beside_the_bounds_is_the_runs_own(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    """Clipped losses of the adapter as stock PEFT loads it, over both whole splits; and what a run from before training
    losses were kept gives is the same."""
    one = finished(tiny_model, toy_csv, tmp_path, "lora")
    gap = bounds(one).gap
    model = PeftModel.from_pretrained(one.task.load_model(one.spec.seed), str(one.adapter)).eval()
    means = []
    for split in (one.task.train, one.task.test):
        batch = dict(one.task.collate(list(split)))
        labels = batch.pop("labels")
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(model(**batch).logits.double(), labels, reduction="none")
        means.append(float(losses.clamp(max=math.log(3)).mean()))
    assert gap.gap == pytest.approx(means[1] - means[0], abs=1e-6)
    assert gap.range == math.log(3)
    with np.load(one.folder / "predictions.npz") as file:
        older = {name: file[name] for name in ("logits", "labels")}
    np.savez_compressed(one.folder / "predictions.npz", **older)
    assert bounds(one).gap.gap == pytest.approx(gap.gap, abs=1e-6)


def test_what_is_printed_of_a_run(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    one = finished(tiny_model, toy_csv, tmp_path, "asym")
    values = bounds(one)
    lines = {line.key: line for line in values.lines}
    n, classes = len(one.task.train), 3
    p = 4 * 4 * 32  # four layers, rank 4, 32 outputs
    assert lines["information"].value == pytest.approx(math.log(classes) / 2 * math.sqrt(2 * 32 * p * math.log(2) / n))
    assert lines["information-head"].value == pytest.approx(
        math.log(classes) / 2 * math.sqrt(2 * 32 * (p + 32 * 3 + 3) * math.log(2) / n)
    )
    assert lines["rank-exists"].value == (math.isqrt(8 * classes * n + 1) - 1) // 2
    assert {"random-factor-upper", "random-factor-lower", "theorem-6", "pac-bayes"} <= set(lines)
    for line in values.lines:
        assert line.mark in ("text", "fixed", "derived", "form")
        assert line.source and line.units


def test_the_input_bound_source_the_largest_example(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    """What the embeddings put out, one example at a time, so that there is no padding to leave out."""
    one = finished(tiny_model, toy_csv, tmp_path, "cla")
    largest = 0.0
    for example in one.task.train:
        batch = one.task.collate([example])
        with torch.no_grad():
            hidden = one.base.bert.embeddings(batch["input_ids"], batch.get("token_type_ids"))
        largest = max(largest, float(hidden.double().norm()))
    assert facts_of_run(one, lambda: None).input_bound == pytest.approx(largest, rel=1e-5)


def test_norms_of_the_base_model_are_computed_once(
    tiny_model: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bounds(finished(tiny_model, toy_csv, tmp_path, "cla"))

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr(spectral_norm, "_lanczos", never)
    second = bounds(finished(tiny_model, toy_csv, tmp_path, "lora"))
    for one, two in zip(first.facts.layers, second.facts.layers, strict=True):
        assert one.base == two.base
    assert module.NORMS == "spectral-norms"
    assert len(list((tmp_path / "cache" / module.NORMS).glob("*.json"))) == 4


def test_columns_of_a_chain_that_came_round_count_once() -> None:
    """The paper's count is capped at the weight's own size."""
    assert int(counted_parameters(facts("c3la", links=48))) == 24 * 768 * 768
