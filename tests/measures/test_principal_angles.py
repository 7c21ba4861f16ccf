"""Angles against their definition in fp64, and chance against subspaces drawn whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewise.measures._linalg.angles import principal_angles, random_angles


def subspace(generator: np.random.Generator, n: int, p: int) -> np.ndarray:
    return np.linalg.qr(generator.standard_normal((n, p)))[0]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.data())
def test_cosines_of_the_angles_are_the_singular_values(n: int, data: st.DataObject) -> None:
    """The definition, to 1e-6 degrees where arccos can tell (1e-8 in a cosine near 1 is 1e-4 rad); and neither the order
    of the two spaces nor their bases matter."""
    p, q = (data.draw(st.integers(1, n)) for _ in range(2))
    generator = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    a, b = subspace(generator, n, p), subspace(generator, n, q)
    angles = principal_angles(a, b)
    assert len(angles) == min(p, q)
    assert np.all(np.diff(angles) >= 0)
    np.testing.assert_allclose(
        np.cos(np.radians(angles)), np.linalg.svd(a.T @ b, compute_uv=False)[: len(angles)], atol=1e-12
    )
    mixed = b @ (generator.standard_normal((q, q)) + 3 * np.eye(q))
    np.testing.assert_allclose(principal_angles(mixed, a), angles, atol=1e-4)


def test_angles_of_nearly_equal_spaces_are_in_order_though_rounding_is_not() -> None:
    """A 5- and a 7-dimensional space of 8 dimensions share four; scipy gives the shared ones out of order by 1e-6 degrees."""
    generator = np.random.default_rng(0)
    angles = principal_angles(subspace(generator, 8, 5), subspace(generator, 8, 7))
    assert np.all(np.diff(angles) >= 0)


@pytest.mark.parametrize("angle", [1e-9, 1e-4, 0.3, 45.0, 89.9999, 90.0])
def test_a_known_turn_is_found_also_where_it_is_tiny(angle: float) -> None:
    """A plane turned about one of its axes: 0 and that angle, to 1e-12 degrees relative to 1."""
    a = np.eye(5)[:, :2]
    t = np.radians(angle)
    b = np.stack([a[:, 0], np.cos(t) * a[:, 1] + np.sin(t) * np.eye(5)[:, 3]], axis=1)
    np.testing.assert_allclose(principal_angles(a, b), [0.0, angle], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("n", "p", "q"), [(60, 4, 4), (40, 2, 7), (7, 5, 4), (5, 5, 2), (384, 8, 8)])
def test_chance_agrees_with_subspaces_drawn_whole(n: int, p: int, q: int) -> None:
    """Within 5 standard errors of 400 draws of both (and 1e-4 degrees, to which arccos knows an angle of 0)."""
    generator = np.random.default_rng(1)
    fixed = subspace(generator, n, p)
    drawn = np.array([principal_angles(fixed, subspace(generator, n, q)) for _ in range(400)])
    chance = random_angles(n, p, q, draws=400)
    for value, sample in ((chance.mean, drawn.mean(axis=1)), (chance.largest, drawn.max(axis=1))):
        assert abs(value - sample.mean()) <= 5 * np.sqrt(2) * sample.std() / 20 + 1e-4
    assert chance.low <= chance.mean <= chance.high
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    spread = drawn.mean(axis=1).std()
    assert abs(chance.low - low) <= spread + 1e-4
    assert abs(chance.high - high) <= spread + 1e-4


def test_mean_squared_cosine_is_the_share_of_dimensions() -> None:
    """E ||P Q||_F^2 / q = p / n: chance's mean angle lies where that says, in a large space."""
    assert random_angles(1000, 10, 10).mean == pytest.approx(np.degrees(np.arccos(np.sqrt(0.01))), abs=1.0)
    assert random_angles(100, 100, 3).largest == pytest.approx(0.0, abs=1e-5)
