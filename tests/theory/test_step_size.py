"""Theorems 2 and 3 on functions whose curvature is known."""

import numpy as np
import pytest

from tunewise.theory import guaranteed_decrease, largest_safe_step


def quadratic(rng, n, m):
    """loss(W) = 1/2 <W - T, H (W - T)> on vec(W); its gradient and largest curvature."""
    root = rng.normal(size=(n * m, n * m))
    h, target = root @ root.T, rng.normal(size=(n, m))
    gradient = lambda w: (h @ (w - target).ravel()).reshape(n, m)  # noqa: E731
    loss = lambda w: 0.5 * (w - target).ravel() @ h @ (w - target).ravel()  # noqa: E731
    return loss, gradient, np.linalg.eigvalsh(h)[-1]


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.999])
def test_a_step_below_the_limit_lowers_the_loss_by_what_is_guaranteed(fraction):
    """200 quadratics; the step is SGD's on B, through B and A; relative tolerance 1e-9."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        n, m = rng.integers(2, 5, size=2)
        rank, alpha = int(rng.integers(1, m + 1)), float(np.exp(rng.normal()))
        loss, gradient, curvature = quadratic(rng, n, m)
        w, a = rng.normal(size=(n, m)), np.eye(m)[rng.permutation(m)[:rank]]
        step = fraction * float(largest_safe_step(rank, alpha, curvature))
        s = alpha / rank
        b = -step * s * gradient(w) @ a.T  # from B = 0, the gradient in B is s grad_W A^T
        decrease = loss(w) - loss(w + s * b @ a)
        selected = np.linalg.norm(gradient(w) @ a.T @ a)
        promised = float(guaranteed_decrease(step, rank, alpha, curvature, selected))
        assert promised > 0
        assert decrease >= promised - 1e-9 * abs(loss(w))


def test_the_limit_is_attained():
    """loss = L/2 W^2: at the limit the loss stays, above it grows, below it falls; 1e-12."""
    rank, alpha, curvature, w = 2, 3.0, 5.0, 1.0
    limit = float(largest_safe_step(rank, alpha, curvature))
    after = [w - gamma * (alpha / rank) ** 2 * curvature * w for gamma in (0.99 * limit, limit, 1.01 * limit)]
    assert abs(after[0]) < w < abs(after[2])
    assert abs(after[1]) == pytest.approx(w, rel=1e-12)
    assert float(guaranteed_decrease(limit, rank, alpha, curvature, 1.0)) == pytest.approx(0, abs=1e-15)
    assert float(guaranteed_decrease(2 * limit, rank, alpha, curvature, 1.0)) < 0


def test_it_is_plain_gradient_descents_limit_at_scale_one():
    assert float(largest_safe_step(rank=8, alpha=8, gradient_lipschitz=4.0)) == 0.5
    assert float(largest_safe_step(rank=8, alpha=16, gradient_lipschitz=4.0)) == 0.125
