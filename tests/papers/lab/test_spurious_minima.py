"""spurious-minima: the verdict, and that a wrong threshold, a wrong judge or an unfinished run shows."""

from __future__ import annotations

import pytest
import torch

from papers.lab.expectations import the
from tunewise.papers.lab import spurious_minima as lab
from tunewise.papers.lab.contract import LabSettings, overall
from tunewise.papers.lab.lazy_problem import descend, random_problems, solve


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(lab, "SIZES", ((2, 5),))
    monkeypatch.setattr(lab, "random_problems", lambda seed, count, *rest: random_problems(seed, 8, *rest))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_theorem_is_confirmed(seed):
    assert overall(lab.run(LabSettings(seed=seed)).findings) == "confirmed"


def test_a_threshold_of_1_is_refuted(monkeypatch, small):
    monkeypatch.setattr(lab, "rank_without_spurious_minima", lambda outputs, samples: 1)
    found = lab.run(LabSettings())
    assert the(found, "stuck at rank 1, K N").verdict == "refuted"
    assert overall(found.findings) == "refuted"


def test_a_judge_that_is_too_low_refutes(monkeypatch, small):
    """An optimum that is claimed 1 % too low leaves every start stuck above it."""

    def too_low(problems):
        right = solve(problems)
        return right._replace(value=0.99 * right.value)

    monkeypatch.setattr(lab, "solve", too_low)
    monkeypatch.setattr(lab, "end_of_starts", lambda *given, real=lab.end_of_starts: real(*given[:3], 4, given[4]))
    assert overall(lab.run(LabSettings()).findings) == "refuted"


def test_runs_that_are_not_finished_leave_it_open(monkeypatch, small):
    """A step or two from the start is neither the optimum nor a local minimum: inconclusive, not confirmed."""
    real = lab.settle
    monkeypatch.setattr(lab, "settle", lambda u, v, given: real(u, v, given, blocks=1))
    monkeypatch.setattr("tunewise.papers.lab.lazy_problem.descend", _two_steps)
    found = lab.run(LabSettings())
    assert the(found, "stuck at rank 5").verdict == "inconclusive"


def _two_steps(state, *problem, real=descend):
    return real(state, *problem, steps=2)


def test_an_end_is_stuck_only_where_hessian_and_gradient_say_a_minimum():
    """W = 0 by u = v = 0 is a saddle: shaken off, such starts are not counted as stuck."""
    settings = LabSettings()
    problems = random_problems(0, 4, 1, 6, lab.SIZE, lab.PENALTY)
    optimum = solve(problems)
    zero = torch.zeros(4, lab.SIZE, 3).double()
    still, bottom = lab._shake(zero, zero, problems.tensors, optimum.value, settings)
    assert bool(still.all()) and not bool(bottom.any())  # 0 times anything stays 0: a saddle, not a minimum


def test_starts_are_of_four_kinds_one_of_them_loras():
    problems = random_problems(0, 3, 1, 6, lab.SIZE, lab.PENALTY)
    u, v, rows = lab.starting_points(problems, 2, 8, LabSettings())
    assert rows.tolist() == [p for p in range(3) for _ in range(8)]
    as_lora = (u == 0).all(2).all(1)
    assert int(as_lora.sum()) == 6 and bool((v[as_lora] != 0).all())
    sizes = v.flatten(1).std(1)
    assert float(sizes.max() / sizes.min()) > 30


def test_every_start_at_rank_1_is_stuck_where_the_optimum_needs_rank_2():
    problems = random_problems(0, 16, 2, 5, lab.SIZE, lab.PENALTY)
    optimum = solve(problems)
    (one,) = lab.end_of_starts(problems, optimum, [1], 8, LabSettings())
    above = one.minimum | one.unfinished
    assert bool((~one.reachable).any())
    assert bool(above[~one.reachable].all())
