"""perturbation-tightness: the verdict, what would refute it, and differences against other ways to have them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from papers.lab.expectations import expecting, loop, the
from tunewise.papers.lab import perturbation_tightness as lab
from tunewise.papers.lab.batched import batch, generator, normal
from tunewise.papers.lab.contract import LabSettings, overall
from tunewise.theory import perturbation
from tunewise.theory.perturbation import Perturbation


@pytest.fixture(scope="module", params=[0, pytest.param(1, marks=pytest.mark.slow)], ids=["seed 0", "seed 1"])
def outcome(request):
    return lab.run(LabSettings(seed=request.param))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(lab, "DEPTHS", (2, 3))
    monkeypatch.setattr(lab, "ASCENT_STEPS", 4)


def test_the_theorem_is_confirmed(outcome):
    assert overall(outcome.findings) == "confirmed"


def test_another_value_where_layers_line_up_is_refuted(outcome):
    assert expecting(outcome, "aligned layers: distance of outputs over Phi_dW / 2, min", 0.5) == "refuted"
    assert expecting(outcome, "aligned layers: difference of gaps", 0.5) == "refuted"  # had Phi no factor 2


def test_a_bound_of_first_order_is_refuted(monkeypatch, small):
    """Without dW in the layers below: sum_l ||dW^l|| prod_{k != l} ||W0^k||, the usual shortcut."""

    def first_order(base_norms, update_norms, **given):
        right = perturbation(base_norms, update_norms, merged_norms=base_norms, **given)
        smaller = perturbation(base_norms, [0.7 * b for b in update_norms], **given)
        return Perturbation(smaller.phi_dw, right.phi_w0)

    monkeypatch.setattr(lab, "perturbation", lambda *a, merged_norms=None, **k: first_order(*a, **k))
    found = lab.run(LabSettings())
    assert the(found, "aligned layers: distance of outputs over Phi_dW / 2, max").verdict == "refuted"


def test_offsets_that_are_forgotten_are_refuted(monkeypatch, small):
    def without(*norms, activation_offsets, **given):
        return perturbation(*norms, activation_offsets=0.0, **given)

    monkeypatch.setattr(lab, "perturbation", without)
    assert overall(lab.run(LabSettings()).findings) == "refuted"


def test_a_printed_formula_that_held_would_be_refuted(outcome):
    assert expecting_upper(outcome) == "refuted"


def expecting_upper(outcome):
    """The verdict had the printed formula been expected to hold."""
    from dataclasses import replace

    return replace(the(outcome, "as printed"), expected=(0.0, 1.0)).verdict


def networks(name, depth, count):
    return lab.random_networks(lab.ACTIVATIONS[name], depth, count, generator(7, depth))


@pytest.mark.parametrize("name", lab.ACTIVATIONS)
def test_the_forward_pass_is_numpys_and_the_constants_are_the_activations(name):
    act, nets = lab.ACTIVATIONS[name], networks(name, 3, 1)
    x = np.linspace(-1, 1, lab.WIDTH)
    plain = {
        "relu": lambda z: np.maximum(z, 0),
        "tanh": np.tanh,
        "softplus": lambda z: np.log1p(np.exp(z)),
        "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    }[name]
    h = x
    for layer in nets.base[0].numpy():
        h = plain(layer @ h)
    np.testing.assert_allclose(lab.forward(act.of, nets.base[0], torch.tensor(x)).numpy(), h, rtol=1e-10)
    grid = np.linspace(-6, 6, 4001)
    assert np.abs(np.diff(plain(grid)) / np.diff(grid)).max() == pytest.approx(act.lipschitz, rel=5e-3)
    assert plain(np.zeros(1))[0] == pytest.approx(act.at_zero)


def test_the_ascent_finds_what_is_known_for_one_linear_layer():
    """The largest ||dW x|| over ||x|| = C is C ||dW||_2: tanh of small weights is linear enough for 1e-4."""
    nets = networks("tanh", 1, 8)
    tiny = 1e-3 * nets.update
    start = normal(generator(8), 8, lab.STARTS, lab.WIDTH)
    start = start * lab.RADIUS / start.norm(dim=-1, keepdim=True)
    found = batch(lambda one, x: lab.farthest(torch.tanh, one, torch.zeros_like(one), x), tiny, start)
    expected = lab.RADIUS * torch.linalg.matrix_norm(tiny[:, 0], ord=2)
    assert bool((found <= expected * (1 + 1e-9)).all())
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)


def test_the_ascent_beats_random_inputs():
    nets = networks("relu", 4, 10)
    both = nets.base + nets.update
    draw = generator(9)
    x = normal(draw, 10, 2000, lab.WIDTH)
    x = x * lab.RADIUS / x.norm(dim=-1, keepdim=True)
    plain = (
        (
            batch(lambda w, x: lab.forward(torch.relu, w, x), both, x)
            - batch(lambda w, x: lab.forward(torch.relu, w, x), nets.base, x)
        )
        .norm(dim=-1)
        .amax(1)
    )
    found = batch(lambda a, b, x: lab.farthest(torch.relu, a, b, x), both, nets.base, x[:, : lab.STARTS])
    assert int((found >= plain * (1 - 1e-9)).sum()) >= 9


def test_updates_have_the_rank_and_sizes_that_are_stated():
    nets = networks("relu", 3, 200)
    assert torch.linalg.matrix_rank(nets.update).unique().tolist() == [lab.RANK]
    share = torch.linalg.matrix_norm(nets.update, ord=2) / torch.linalg.matrix_norm(nets.base, ord=2)
    assert 0.01 <= float(share.min()) < 0.02 and 0.8 < float(share.max()) <= 1 + 1e-12


def test_a_gap_is_the_mean_of_all_less_the_mean_of_the_sample():
    nets = networks("relu", 2, 1)
    x, targets = normal(generator(1), lab.POPULATION, lab.WIDTH), normal(generator(2), lab.POPULATION, lab.WIDTH)
    out = lab.forward(torch.relu, nets.base[0], x).numpy()
    losses = np.linalg.norm(out - targets.numpy(), axis=1)
    expected = losses.mean() - losses[: lab.SAMPLE].mean()
    assert float(lab.gap(torch.relu, nets.base[0], x, targets)) == pytest.approx(expected, rel=1e-12)


def test_the_factor_a_layer_is_the_slope_of_a_known_law(monkeypatch):
    monkeypatch.setattr(lab, "DEPTHS", (1, 2, 5))
    rows = [[3.0**-d, 2.0**-d] for d in (1, 2, 5)]
    assert lab._loosening(rows) == pytest.approx([3.0, 2.0], rel=1e-12)


def test_the_counterexample_is_one():
    """By hand: printed Phi_dW / 2 is 2 C b1 b2 = 0.04; the truth is ||softplus(softplus(0.01 x)) - softplus(0)||."""
    x = 2 / math.sqrt(12)
    inner = math.log1p(math.exp(0.01 * x))
    truth = math.sqrt(12) * (math.log1p(math.exp(inner)) - math.log(2))
    assert lab.misprint() == pytest.approx(truth / 0.04, rel=1e-9)


def test_a_batch_is_the_loop_over_its_runs():
    """float64, to 1e-9: the ascent's 24 steps carry rounding along."""
    nets = networks("softplus", 3, 3)
    x = normal(generator(3), 3, lab.STARTS, lab.WIDTH)

    def run(one, other, x):
        return lab.farthest(lab.ACTIVATIONS["softplus"].of, one, other, x)

    arguments = (nets.base + nets.update, nets.base, x)
    torch.testing.assert_close(batch(run, *arguments), loop(run, *arguments), rtol=1e-9, atol=1e-9)
