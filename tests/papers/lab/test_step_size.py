"""step-size: the verdict, what would refute it, and a step against numpy and against a closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from papers.lab.expectations import expecting, loop, the
from tunewise.papers.lab import step_size as lab
from tunewise.papers.lab.batched import batch
from tunewise.papers.lab.contract import LabSettings, overall
from tunewise.theory import largest_safe_step


@pytest.fixture(scope="module", params=[0, 1], ids=["seed 0", "seed 1"])
def outcome(request):
    return lab.run(LabSettings(seed=request.param))


def test_the_theorem_is_confirmed(outcome):
    assert overall(outcome.findings) == "confirmed"


def test_another_first_rate_is_refuted(outcome):
    assert expecting(outcome, "bound, aligned, farthest", 2.0) == "refuted"
    assert expecting(outcome, "bound, aligned, farthest", 0.999) == "refuted"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda r, a, c: 2 / c,  # without the scale
        lambda r, a, c: 2 * r / (c * a),  # without the square
        lambda r, a, c: 1 / c * (r / a) ** 2,  # too careful
        lambda r, a, c: 4 / c * (r / a) ** 2,  # too bold
    ],
)
def test_another_bound_is_refuted(monkeypatch, wrong):
    monkeypatch.setattr(lab, "largest_safe_step", wrong)
    monkeypatch.setattr(lab, "RANKS", (2,))
    found = lab.run(LabSettings())
    assert the(found, "bound, aligned, farthest").verdict == "refuted"
    assert overall(found.findings) == "refuted"


def test_too_large_a_guaranteed_decrease_is_refuted(monkeypatch):
    real = lab.guaranteed_decrease
    monkeypatch.setattr(lab, "guaranteed_decrease", lambda *a: 1.001 * float(real(*a)))
    monkeypatch.setattr(lab, "RANKS", (2,))
    assert the(lab.run(LabSettings()), "guaranteed decrease").verdict == "refuted"


@pytest.mark.parametrize("family", ["aligned", "random"])
def test_a_step_is_the_closed_form_by_numpy(family):
    """W -= gamma (alpha / r)^2 grad_W A^T A, loss = mean ||x W^T - y||^2 / 2; to 1e-10 of the loss."""
    problems = lab.make(family, 3, 4, LabSettings())
    rate = 0.7 * problems.bound
    moved = batch(lambda r, *p: lab.change(family, r, *p), rate, *problems.tensors)
    for place in range(4):
        x, y, weight, b = (t[place].numpy() for t in problems.tensors[:4])
        alpha, gamma = float(problems.alpha[place]), float(rate[place])
        weight = weight.copy()
        weight[:, :3] += alpha / 3 * b
        residual = x @ weight.T - y
        after = weight.copy()
        after[:, :3] -= gamma * (alpha / 3) ** 2 * (residual.T @ x / len(x))[:, :3]
        losses = [np.square(x @ w.T - y).sum(1).mean() / 2 for w in (weight, after)]
        assert float(moved[place]) == pytest.approx(losses[1] - losses[0], abs=1e-10 * losses[0])


@pytest.mark.parametrize("family", lab.FAMILIES)
def test_the_lipschitz_constant_is_one(family):
    """No two weights have gradients further apart than L times their distance; squared error attains it (to 1e-9)."""
    problems = lab.make(family, 2, 1, LabSettings())
    x, y = problems.x[0], problems.y[0]
    no_update = torch.zeros(lab.OUTPUTS, 2).double()

    def gradient(weight):
        return torch.func.grad(lambda w: lab.loss(family, no_update, x, y, w, torch.tensor(1.0)))(weight)

    draw = torch.Generator().manual_seed(0)
    worst = 0.0
    for scale in (1e-3, 0.1, 1.0, 10.0):
        for _ in range(20):
            one = scale * torch.randn(lab.OUTPUTS, lab.INPUTS, generator=draw, dtype=torch.float64)
            steep = torch.outer(torch.randn(lab.OUTPUTS, generator=draw).double(), torch.linalg.svd(x)[2][0])
            for other in (one + 0.1 * steep, -one):
                worst = max(worst, float((gradient(one) - gradient(other)).norm() / (one - other).norm()))
    assert worst <= float(problems.lipschitz[0]) * (1 + 1e-9)
    if family != "logistic":
        assert worst == pytest.approx(float(problems.lipschitz[0]), rel=1e-9)


def test_aligned_problems_are_as_steep_as_they_get_on_the_selected_columns_only():
    problems = lab.make("aligned", 4, 3, LabSettings())
    sigma = problems.x.mT @ problems.x / lab.SAMPLES
    sizes = torch.linalg.eigvalsh(sigma) / problems.lipschitz[:, None]
    torch.testing.assert_close(sizes[:, -4:], torch.ones(3, 4).double())
    assert float(sizes[:, :-4].max()) < 0.5
    torch.testing.assert_close(sigma[:, :4, :4], problems.lipschitz[:, None, None] * torch.eye(4).double())


def test_the_bound_is_the_calculators():
    problems = lab.make("random", 2, 3, LabSettings())
    expected = [float(largest_safe_step(2, a, c)) for a, c in zip(problems.alpha.tolist(), problems.lipschitz.tolist())]
    assert problems.bound.tolist() == expected


def test_bisection_ends_where_the_sign_changes():
    for family in lab.FAMILIES:
        problems = lab.make(family, 2, 5, LabSettings())
        rise = batch(lambda least, *p, f=family: lab.first_rise(f, least, *p), problems.bound / 8, *problems.tensors)
        for factor, sign in ((1 - 1e-6, -1), (1 + 1e-6, 1)):
            moved = batch(lambda r, *p, f=family: lab.change(f, r, *p), factor * rise, *problems.tensors)
            assert bool((moved * sign > 0).all())


def test_batches_are_the_loops_over_their_runs():
    """float64, to 1e-11."""
    problems = lab.make("random", 4, 3, LabSettings())
    arguments = (0.5 * problems.bound, *problems.tensors)
    for run in (lambda r, *p: lab.change("logistic", r, *p), lambda r, *p: lab.change("random", r, *p)):
        torch.testing.assert_close(batch(run, *arguments), loop(run, *arguments), rtol=1e-11, atol=1e-11)
