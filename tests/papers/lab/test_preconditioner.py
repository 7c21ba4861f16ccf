"""The preconditioner's steps: the verdict, what would refute it, batches against loops."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from papers.lab.expectations import expecting, loop
from tunewise.papers.lab import preconditioner as lab
from tunewise.papers.lab.batched import batch
from tunewise.papers.lab.contract import LabSettings, overall


@pytest.fixture(scope="module", params=[0, 1], ids=["seed 0", "seed 1"])
def outcome(request):
    return lab.run(LabSettings(seed=request.param))


def test_steps_are_the_same_with_it_and_in_proportion_without(outcome):
    assert overall(outcome.findings) == "confirmed"


@pytest.mark.parametrize("wrong", [0.5, 1.0])
def test_growth_with_it_is_refuted(outcome, wrong):
    assert expecting(outcome, "in the steps, preconditioned", wrong) == "refuted"


@pytest.mark.parametrize("wrong", [0.0, 0.5, 2.0])
def test_other_growth_without_it_is_refuted(outcome, wrong):
    assert expecting(outcome, "in the steps, plain", wrong) == "refuted"


@pytest.mark.parametrize(("eps", "verdict"), [(0.1, "refuted"), (10.0, "inconclusive")])
def test_too_much_damping_is_not_confirmed(monkeypatch, eps, verdict):
    """With eps as large as the Gram matrices the preconditioner is a number: steps grow with the condition number;
    where runs don't come to the target at all, there is no number of steps, and no error either."""
    monkeypatch.setattr(lab, "EPS", eps)
    monkeypatch.setattr(lab, "STEPS", {True: 200, False: 1600})
    assert overall(lab.run(LabSettings()).findings) == verdict


@pytest.mark.parametrize("preconditioned", [True, False])
def test_a_batch_is_the_loop_over_its_runs(preconditioned):
    drawn = lab.problems(LabSettings(), 10.0, 3)
    descent = partial(lab.errors, preconditioned=preconditioned, steps=25)
    torch.testing.assert_close(batch(descent, *drawn), loop(descent, *drawn), rtol=1e-7, atol=1e-13)


def test_steps_are_counted_to_the_first_error_below():
    found = lab.steps_to(torch.tensor([[1.0, 0.1, 0.01, 0.1], [0.01, 1, 1, 1], [1.0, 1.0, 1.0, 1.0]]), 0.05)
    assert found[:2].tolist() == [2, 0] and math.isnan(found[2])
