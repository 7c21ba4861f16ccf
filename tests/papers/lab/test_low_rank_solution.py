"""low-rank-solution: the verdict, what would refute it, and the construction against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from papers.lab.expectations import loop, the
from tunewise.papers.lab import low_rank_solution as lab
from tunewise.papers.lab.batched import batch, generator, normal
from tunewise.papers.lab.contract import LabSettings, overall
from tunewise.papers.lab.lazy_problem import certificate, convex_value, solve


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(lab, "SIZES", ((2, 5),))
    monkeypatch.setattr(lab, "_counts", lambda settings: (4, 6))


def test_the_theorem_is_confirmed_on_few_problems(monkeypatch):
    monkeypatch.setattr(lab, "SIZES", ((1, 3), (2, 5)))
    monkeypatch.setattr(lab, "_counts", lambda settings: (4, 6))
    assert overall(lab.run(LabSettings()).findings) == "confirmed"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_theorem_is_confirmed(seed):
    assert overall(lab.run(LabSettings(seed=seed)).findings) == "confirmed"


def test_a_lower_rank_than_the_theorems_is_refuted(monkeypatch, small):
    """Had the theorem said r (r + 1) <= K N, i.e. rank 2 for K N = 10."""
    monkeypatch.setattr(lab, "rank_for_existence", lambda outputs, samples: 2)
    found = lab.run(LabSettings())
    assert the(found, "lowest minimizer found").verdict == "refuted"
    assert the(found, "single minimizer less the theorem's").verdict == "refuted"


def test_a_weight_that_is_no_minimiser_is_refuted(monkeypatch, small):
    """Rank by truncation instead of by the construction: low enough, and above the minimum."""

    def truncated(weight, features):
        u, s, vh = torch.linalg.svd(weight)
        return (u[:, :2] * s[:2]) @ vh[:2]

    monkeypatch.setattr(lab, "lower_rank", truncated)
    assert the(lab.run(LabSettings()), "above FISTA's").verdict == "refuted"


def test_no_pushing_at_all_is_refuted(monkeypatch, small):
    monkeypatch.setattr(lab, "lower_rank", lambda weight, features: weight)
    assert the(lab.run(LabSettings()), "lowest minimizer found").verdict == "refuted"


@pytest.mark.parametrize("kind", ["planted", "pinned"])
def test_a_planted_minimiser_is_one_by_its_dual_certificate(kind):
    problems, planted = getattr(lab, f"{kind}_problems")(0, 6, 2, 5)
    gap = batch(certificate, planted, *problems.tensors)
    value = batch(convex_value, planted, *problems.tensors)
    assert float((gap / value).abs().max()) < 1e-12
    rank = lab.FACE if kind == "planted" else 4
    assert torch.linalg.matrix_rank(planted).tolist() == [rank] * 6


def test_a_pinned_minimiser_is_the_only_one():
    """FISTA from elsewhere comes to the same weight, and the features leave the face no direction (numpy, rank 10)."""
    problems, planted = lab.pinned_problems(0, 4, 2, 5)
    found = solve(problems, start=3 * normal(generator(9), 4, lab.SIZE, lab.SIZE), tolerance=1e-13)
    torch.testing.assert_close(found.weight, planted, rtol=0, atol=1e-5)
    u, _, vh = np.linalg.svd(planted[0].numpy())
    seen = [u[:, :4].T @ g @ vh[:4].T for g in problems.features[0].numpy()]
    symmetric = np.array([((g + g.T) / 2)[np.tril_indices(4)] for g in seen])
    assert np.linalg.matrix_rank(symmetric) == 10


def test_pushing_keeps_what_the_loss_sees_and_does_not_raise_the_norm():
    """Of any weight, not only minimisers: <G_i, W> to 1e-9, ||W||_* not up, rank by Pataki's count, all by numpy."""
    draw = generator(10)
    weight, features = normal(draw, 5, lab.SIZE, lab.SIZE), normal(draw, 5, 6, lab.SIZE, lab.SIZE)
    low = batch(lab.lower_rank, weight, features)
    for w, v, g in zip(weight.numpy(), low.numpy(), features.numpy()):
        np.testing.assert_allclose(np.einsum("imn,mn->i", g, v), np.einsum("imn,mn->i", g, w), atol=1e-9)
        assert np.linalg.norm(v, "nuc") <= np.linalg.norm(w, "nuc") + 1e-9
        assert np.linalg.matrix_rank(v, tol=1e-8) <= 3  # 3 * 4 / 2 = 6


def test_batches_are_the_loops_over_their_runs():
    """The eigenvectors that a batch and a loop choose may differ in sign: weights may, ranks and norms may not."""
    draw = generator(11)
    weight, features = normal(draw, 4, lab.SIZE, lab.SIZE), normal(draw, 4, 6, lab.SIZE, lab.SIZE)
    one, other = batch(lab.lower_rank, weight, features), loop(lab.lower_rank, weight, features)
    assert torch.linalg.matrix_rank(one, rtol=1e-8).tolist() == torch.linalg.matrix_rank(other, rtol=1e-8).tolist()
    seen = [torch.einsum("pimn,pmn->pi", features, w) for w in (one, other)]
    torch.testing.assert_close(*seen, rtol=1e-9, atol=1e-9)


def test_a_size_that_is_no_triangle_is_an_error():
    assert [lab._triangle(n) for n in (1, 3, 6, 10, 15)] == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="K N = 7"):
        lab._triangle(7)
