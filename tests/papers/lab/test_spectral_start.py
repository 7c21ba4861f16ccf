"""The spectral start: the verdict, what would refute it, and the formula against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from papers.lab.expectations import LinearModel, expecting, loop, the
from tunewise.papers.lab import spectral_start as lab
from tunewise.papers.lab.batched import batch
from tunewise.papers.lab.contract import LabSettings, overall
from tunewise.papers.lab.linear_model import low_rank, moment, spectrum


@pytest.fixture(scope="module", params=[0, 1], ids=["seed 0", "seed 1"])
def outcome(request):
    return lab.run(LabSettings(seed=request.param))


def test_the_theorem_is_confirmed(outcome):
    assert overall(outcome.findings) == "confirmed"


@pytest.mark.parametrize("wrong", [-1.0, -0.25, 0.0])
def test_another_slope_is_refuted(outcome, wrong):
    assert expecting(outcome, "log-log slope", wrong) == "refuted"


def test_too_small_a_rank_or_skewed_inputs_do_not_come_near(outcome):
    """The limits that are expected there are not 0, and 0 would be refuted."""
    assert expecting(outcome, "rank r* - 1", 0.0) == "refuted"
    assert expecting(outcome, "inputs of variances", 0.0) == "refuted"


def test_a_start_of_another_length_is_refuted(monkeypatch):
    """Without the square root of the singular values, as 2502.01235's README prints it."""

    def printed(gradient, rank):
        u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
        return s[:rank, None] * vh[:rank], u[:, :rank] * s[:rank]

    monkeypatch.setattr(lab, "start", printed)
    found = lab.run(LabSettings())
    assert the(found, "log-log slope").verdict == "refuted"


def test_the_distance_is_numpys():
    """To 1e-12: best rank-r part of D X^T X / N by numpy's SVD, spectral norms."""
    draw = torch.Generator().manual_seed(3)
    target, x = low_rank(draw, 16, 24, 3, 2.0), torch.randn(100, 24, generator=draw, dtype=torch.float64)
    d, inputs = target.numpy(), x.numpy()
    for rank in (1, 2, 3):
        u, s, vt = np.linalg.svd(d @ inputs.T @ inputs / 100)
        expected = np.linalg.norm(u[:, :rank] * s[:rank] @ vt[:rank] - d, 2) / np.linalg.norm(d, 2)
        assert lab.distance(target, x, rank).item() == pytest.approx(expected, rel=1e-12)


def test_a_batch_is_the_loop_over_its_runs():
    draw = torch.Generator().manual_seed(4)
    targets = torch.stack([low_rank(draw, 16, 24, 3, 2.0) for _ in range(4)])
    x = torch.randn(4, 64, 24, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(batch(lab.distance, targets, x), loop(lab.distance, targets, x), rtol=1e-10, atol=0)


def test_the_models_gradient_at_w0_is_the_formulas():
    """-grad = D M, by autograd; the target's singular values are the ones asked for. To 1e-12."""
    draw = torch.Generator().manual_seed(5)
    target = low_rank(draw, 16, 24, 4, 8.0)
    torch.testing.assert_close(torch.linalg.svdvals(target)[:4], spectrum(4, 8.0), rtol=1e-12, atol=0)
    assert spectrum(4, 8.0).tolist() == pytest.approx([1, 1 / 2, 1 / 4, 1 / 8])
    weight, x = (torch.randn(n, 24, generator=draw, dtype=torch.float64) for n in (16, 50))
    model = LinearModel(weight)
    model(inputs=x, labels=x @ (weight + target).T).loss.backward()
    torch.testing.assert_close(-model.linear.weight.grad, target @ moment(x), rtol=0, atol=1e-12)
