"""The convex judge and LoRA's descent, each against something that knows nothing of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from papers.lab.expectations import loop
from tunewise.papers.lab.batched import batch, generator, normal
from tunewise.papers.lab.lazy_problem import (
    Problems,
    State,
    certificate,
    convex_value,
    descend,
    factored_value,
    fista,
    least_curvature,
    random_problems,
    settle,
    solve,
    stacked,
    value_and_gradients,
)


@pytest.fixture(scope="module")
def problems():
    return random_problems(0, 8, outputs=2, samples=4, size=5, penalty=0.2)


@pytest.fixture(scope="module")
def optimum(problems):
    return solve(problems)


def test_the_certificate_holds_and_is_met(problems, optimum):
    assert float((optimum.gap / optimum.value).max()) < 1e-9
    assert float(optimum.gap.min()) > -1e-12


def test_no_other_weight_is_below_the_proved_minimum(problems, optimum):
    """Steps of many sizes off the optimum, and scipy's L-BFGS on the smoothed problem, never get under it."""
    draw = generator(1)
    for size in (1e-4, 1e-2, 1.0):
        other = optimum.weight + size * normal(draw, *optimum.weight.shape)
        values = batch(convex_value, other, *problems.tensors)
        assert bool((values >= optimum.value - optimum.gap).all())


def test_fista_agrees_with_a_general_solver_on_the_factored_form(problems, optimum):
    """u v^T of full rank has the same minimum: scipy's L-BFGS on it, to 1e-7."""
    g, y, lam, n = (t[0].numpy() for t in problems.tensors)

    def value(z):
        u, v = z[:25].reshape(5, 5), z[25:].reshape(5, 5)
        residual = np.einsum("imn,mn->i", g, u @ v.T) - y
        slope = np.einsum("imn,i->mn", g, residual) / n
        total = residual @ residual / (2 * n) + lam / 2 * (z @ z)
        return total, np.concatenate([(slope @ v + lam * u).ravel(), (slope.T @ u + lam * v).ravel()])

    start = np.random.default_rng(0).normal(size=50)
    best = minimize(value, start, jac=True, method="L-BFGS-B", options={"maxiter": 20000, "ftol": 1e-15, "gtol": 1e-10})
    assert best.fun == pytest.approx(float(optimum.value[0]), rel=1e-7)


def test_one_entry_has_the_soft_threshold_as_its_solution():
    """m = n = 1: 1/2 (g w - y)^2 + lam |w|, w = (y - lam / g) / g."""
    one = Problems(
        torch.full((1, 1, 1, 1), 2.0).double(), torch.tensor([[3.0]]).double(), torch.tensor([0.5]).double(), 1, 1
    )
    assert float(solve(one).weight) == pytest.approx((3.0 - 0.5 / 2) / 2, rel=1e-9)


def test_a_weight_that_is_not_the_minimum_is_not_certified(problems, optimum):
    worse = optimum.weight + 0.1 * normal(generator(2), *optimum.weight.shape)
    excess = batch(convex_value, worse, *problems.tensors) - optimum.value
    gap = batch(certificate, worse, *problems.tensors)
    assert bool((gap >= excess - 1e-12).all()) and bool((gap > 1e-3).all())


def test_gradients_are_autograds(problems):
    """float64, to 1e-10."""
    draw = generator(3)
    u, v = normal(draw, 5, 3), normal(draw, 5, 3)
    part = [t[0] for t in problems.tensors]
    value, down_u, down_v = value_and_gradients(u, v, *part)
    expected = torch.func.grad(lambda u, v: factored_value(u, v, *part), argnums=(0, 1))(u, v)
    torch.testing.assert_close(value, factored_value(u, v, *part), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((down_u, down_v), expected, rtol=1e-10, atol=1e-10)


def test_factors_cost_as_much_as_the_nuclear_norm_where_they_are_balanced(problems, optimum):
    left, sizes, right = torch.linalg.svd(optimum.weight)
    u, v = left * sizes.sqrt()[:, None], right.mT * sizes.sqrt()[:, None]
    torch.testing.assert_close(batch(factored_value, u, v, *problems.tensors), optimum.value, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        batch(factored_value, 2 * u, v / 2, *problems.tensors) > optimum.value, torch.ones(8, dtype=torch.bool)
    )


def test_descent_never_goes_up_and_arrives(problems, optimum):
    draw = generator(4)
    u, v = normal(draw, 8, 5, 5), normal(draw, 8, 5, 5)
    values = [batch(factored_value, u, v, *problems.tensors)]
    state = State(u, v, torch.full((8,), 0.1).double())
    for _ in range(20):
        state = State(*batch(lambda u, v, s, *p: descend(State(u, v, s), *p, steps=5), *state, *problems.tensors))
        values.append(batch(factored_value, state.u, state.v, *problems.tensors))
    assert bool((torch.stack(values).diff(dim=0) <= 0).all())
    ends = settle(u, v, problems.tensors)
    torch.testing.assert_close(ends.value, optimum.value, rtol=1e-6, atol=0)


def test_columns_past_the_rank_stay_zero_and_change_nothing(problems):
    """A start of rank 2 alone and beside one of rank 4: the same after 10 steps, to 1e-10 (sums of other lengths)."""
    draw = generator(5)
    small = normal(draw, 8, 5, 2), normal(draw, 8, 5, 2)
    large = normal(draw, 8, 5, 4), normal(draw, 8, 5, 4)

    def ten(u, v, *problem):
        return tuple(descend(State(u, v, torch.tensor(0.1).double()), *problem, steps=10))

    u, v, _ = batch(ten, *stacked([small, large]), *(t.repeat(2, *[1] * (t.dim() - 1)) for t in problems.tensors))
    alone = batch(ten, *small, *problems.tensors)
    assert float(u[:8, :, 2:].abs().max()) == 0 == float(v[:8, :, 2:].abs().max())
    assert bool((u[8:, :, 2:] != 0).all())
    torch.testing.assert_close(u[:8, :, :2], alone[0], rtol=1e-10, atol=1e-10)


def test_least_curvature_tells_a_saddle_from_a_minimum(problems, optimum):
    part = [t[:1] for t in problems.tensors]
    zero = torch.zeros(1, 5, 3).double()
    assert float(batch(least_curvature, zero, zero, *part)) < -1e-3  # 0 is a saddle: lam is below ||slope||
    ends = settle(normal(generator(6), 1, 5, 3), normal(generator(7), 1, 5, 3), part)
    assert float(batch(least_curvature, ends.u, ends.v, *part)) > -1e-6


def test_batches_are_the_loops_over_their_runs(problems):
    """float64, to 1e-11 after 10 steps."""
    draw = generator(8)
    u, v = normal(draw, 8, 5, 2), normal(draw, 8, 5, 2)
    step = torch.full((8,), 0.1).double()

    def ten(u, v, step, *problem):
        return tuple(descend(State(u, v, step), *problem, steps=10))

    for got, expected in zip(batch(ten, u, v, step, *problems.tensors), loop(ten, u, v, step, *problems.tensors)):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)

    def accelerated(start, g, y, lam, n):
        return fista(start, g, y, lam, n, 10)

    start = torch.zeros(8, 5, 5).double()
    torch.testing.assert_close(
        batch(accelerated, start, *problems.tensors),
        loop(accelerated, start, *problems.tensors),
        rtol=1e-11,
        atol=1e-11,
    )
