"""Theorem 4: the corrected constant holds on random blocks; 1/2 and the spectral reading do not."""

import math

import numpy as np
import pytest

from tunewise.theory import attention_difference


def block(x, q, k, v, o, heads=1):
    """softmax(X WQ (X WK)^T / sqrt(d_k)) X WV WO by heads; everything may have a leading batch dimension."""
    mixed = []
    for wq, wk, wv in zip(*(np.split(w, heads, axis=-1) for w in (q, k, v))):
        scores = x @ wq @ np.swapaxes(x @ wk, -1, -2) / math.sqrt(wq.shape[-1])
        p = np.exp(scores - scores.max(-1, keepdims=True))
        mixed.append(p / p.sum(-1, keepdims=True) @ x @ wv)
    return np.concatenate(mixed, axis=-1) @ o


def two(w):
    return np.linalg.norm(w, 2, axis=(-2, -1))


def frobenius(w):
    return np.linalg.norm(w, axis=(-2, -1))


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("seed", range(12))
def test_the_local_constant_is_never_violated(seed, heads):
    """150 random blocks each, scales from linear to saturated softmax; relative tolerance 1e-9."""
    rng = np.random.default_rng([seed, heads])
    tokens, width, count = rng.integers(1, 7), 4, 150
    scale = np.exp(rng.uniform(-2, 2, size=(9, count, 1, 1)))
    x = rng.normal(size=(count, tokens, width)) * scale[0]
    base = rng.normal(size=(4, count, width, width)) * scale[1:5]
    update = rng.normal(size=(4, count, width, width)) * scale[5:] * rng.choice([1e-4, 0.1, 1], size=(4, 1, 1, 1))
    update *= rng.random((4, count, 1, 1)) < 0.7  # some parts not updated at all
    moved = frobenius(block(x, *(base + update), heads) - block(x, *base, heads))
    merged = two(base[2] + update[2])
    for i in range(count):
        shape = {"input_bound": two(x[i]), "tokens": tokens, "head_width": width // heads, "heads": heads}
        norms = two(base[:, i]), frobenius(update[:, i])
        plain = attention_difference(*norms, **shape)
        sharp = attention_difference(
            *norms, **shape, spectral_update_norms=two(update[:, i]), merged_value_norm=merged[i]
        )
        assert moved[i] <= float(sharp) * (1 + 1e-9) + 1e-12
        assert float(sharp) <= float(plain) * (1 + 1e-15)


def difference_and_bound(x, base, update, **options):
    moved = block(x, *(w + dw for w, dw in zip(base, update))) - block(x, *base)
    shape = {"input_bound": two(x), "tokens": x.shape[0], "head_width": base[0].shape[1]}
    return moved, lambda norms: float(attention_difference([two(w) for w in base], norms, **shape, **options))


def test_one_half_is_refuted_by_one_token():
    """X = 1, WO = 1, dWV = 1: the softmax of one score is 1, the output moves by 1, half of it is allowed."""
    one, zero = np.ones((1, 1)), np.zeros((1, 1))
    moved, bound = difference_and_bound(one, (zero, zero, zero, one), (zero, zero, one, zero), as_printed=True)
    assert frobenius(moved) == 1.0
    assert bound([0, 0, 1, 0]) == 0.5


def test_one_half_is_refuted_through_the_softmax_too():
    """Two tokens, only WQ updated: 5.4 against 0.35, which does not grow with V as the difference does."""
    x, q, k = np.eye(2), np.zeros((2, 1)), np.array([[4.0], [-4.0]])
    v, o, zero = np.array([[4.0], [-4.0]]), np.eye(1), np.zeros((2, 1))
    dq = np.array([[0.5], [0.5]])
    moved, printed = difference_and_bound(x, (q, k, v, o), (dq, zero, zero, np.zeros((1, 1))), as_printed=True)
    _, corrected = difference_and_bound(x, (q, k, v, o), (dq, zero, zero, np.zeros((1, 1))))
    norms = [frobenius(dq), 0, 0, 0]
    assert frobenius(moved) > 10 * printed(norms)
    assert frobenius(moved) <= corrected(norms)


def test_spectral_norms_of_the_updates_are_not_enough():
    """Every token splits its attention between itself and the first; dWQ = e I moves all rows at once.

    ||dWQ||_2 is e, ||dWQ||_F is 6 e: the difference, even in the spectral norm, is between the two bounds.
    """
    n, big, e = 36, 1000.0, 1e-6
    eye, zero = np.eye(n), np.zeros((n, n))
    q = eye.copy()
    q[:, 0] = 1
    q *= 40 * math.sqrt(n) / big  # scores of 40 for itself and the first
    moved, bound = difference_and_bound(eye, (q, big * eye, big * eye, eye), (e * eye, zero, zero, zero))
    assert two(moved) > bound([two(e * eye), 0, 0, 0])
    assert frobenius(moved) <= bound([frobenius(e * eye), 0, 0, 0])


def test_heads_that_look_at_different_tokens_attain_the_root_of_their_number():
    """X = WV = I, WO0 = 0, head h looks at token h only: each row is all ones, dWO adds it up. To 1e-9."""
    n = 5
    eye, zero = np.eye(n), np.zeros((n, 1))
    base, update = (100 * np.ones((n, n)), 100 * eye, eye, zero), np.ones((n, 1))
    moved = frobenius(block(eye, *base[:3], update, heads=n) - block(eye, *base, heads=n))
    norms = [two(w) for w in base], [0.0, 0.0, 0.0, frobenius(update)]
    shape = {"input_bound": 1.0, "tokens": n, "head_width": 1}
    assert moved == pytest.approx(n * math.sqrt(n), rel=1e-9)
    assert float(attention_difference(*norms, **shape, heads=n)) == pytest.approx(n * math.sqrt(n), rel=1e-9)
    assert float(attention_difference(*norms, **shape)) < moved


@pytest.mark.parametrize("heads", [1, 4])
def test_it_is_the_formula_by_hand(heads):
    """Relative tolerance 1e-14."""
    base, update, c, tokens, d_k = (1.1, 0.7, 1.9, 0.6), (0.2, 0.3, 0.4, 0.5), 1.5, 5, 8
    qb, kb, vb = (c * (w + dw) for w, dw in zip(base[:3], update[:3]))
    constant = math.sqrt(vb**2 * (qb**2 + kb**2) / (4 * d_k) + tokens)
    by_hand = c * (constant * math.hypot(0.2, 0.3, 0.4) * 0.6 + math.sqrt(heads * tokens) * (1.9 + 0.4) * 0.5)
    assert float(attention_difference(base, update, c, tokens, d_k, heads)) == pytest.approx(by_hand, rel=1e-14)


def test_no_update_no_difference():
    assert float(attention_difference((3, 3, 3, 3), (0, 0, 0, 0), 1.0, tokens=7, head_width=4)) == 0.0


@pytest.mark.parametrize("which", range(10))
def test_it_is_monotone_in_every_norm(which):
    base, update, rest = [1.0, 2.0, 3.0, 4.0], [0.1, 0.2, 0.3, 0.4], [1.0, 4]
    before = float(attention_difference(base, update, *rest, head_width=4))
    parts = [*base, *update, *rest]
    parts[which] += 1
    assert float(attention_difference(parts[:4], parts[4:8], *parts[8:], head_width=4)) > before
