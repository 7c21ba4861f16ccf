"""Alignment with the one-step gradient: the verdict, what would refute it, and the runs against real LoRA."""

from __future__ import annotations

import pytest
import torch

import tunewise
from papers.lab.expectations import LinearModel, expecting, loop
from tunewise.papers.lab import lora_one_alignment as lab
from tunewise.papers.lab.batched import batch
from tunewise.papers.lab.contract import LabSettings, overall
from tunewise.papers.lab.linear_model import moment


@pytest.fixture(scope="module", params=[0, 1], ids=["seed 0", "seed 1"])
def outcome(request):
    return lab.run(LabSettings(seed=request.param))


def test_the_theorems_are_confirmed(outcome):
    assert overall(outcome.findings) == "confirmed"


@pytest.mark.parametrize("wrong", [0.0, 1 / 3, 0.5, 1.0])
def test_another_exponent_is_refuted(outcome, wrong):
    """1/3 is 2 / (3 kappa), of the cruder argument in which the largest direction hides the smallest."""
    assert expecting(outcome, "best angle, condition number 2", wrong) == "refuted"


def test_a_right_space_that_leaves_is_refuted(monkeypatch):
    """A gradient of higher rank than the space that B is compared with."""
    start, *rest = lab.problems(LabSettings(), 1.0, 3)
    monkeypatch.setattr(lab, "TARGET_RANK", 2)
    right, left, _, _ = batch(lab.descend, 1e-7 * start, *rest)
    found = lab._findings(1.0, right, left.amin(-1)[None].expand(len(lab.ALL_SIZES), -1))
    assert found[0].verdict == "refuted"


def test_a_batch_is_the_loop_over_its_runs():
    """To 1e-9 of every number's size, after 60 steps; the right space's shares are rounding and only as small."""
    start, gradient, second = lab.problems(LabSettings(), 2.0, 3)
    runs = (0.01 * start, gradient, second)
    short = lambda *arguments: lab.descend(*arguments, steps=60)  # noqa: E731
    right, *together = batch(short, *runs)
    right_alone, *alone = loop(short, *runs)
    assert right.max() < 1e-13 and right_alone.max() < 1e-13
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_run_is_plain_lora_under_sgd():
    """attach("lora"), scale 1, B = 0, torch's SGD, 60 steps in float64: A and B to 1e-10."""
    start, gradient, second = (part[0] for part in lab.problems(LabSettings(), 2.0, 1))
    target = torch.linalg.solve(second, gradient.T).T
    draw = torch.Generator().manual_seed(0)
    white = torch.linalg.qr(torch.randn(80, lab.INPUTS, generator=draw, dtype=torch.float64)).Q * 80**0.5
    x = white @ torch.linalg.cholesky(second).T
    torch.testing.assert_close(moment(x), second, rtol=0, atol=1e-12)
    weight = torch.randn(lab.OUTPUTS, lab.INPUTS, generator=draw, dtype=torch.float64)
    model = tunewise.attach(LinearModel(weight), "lora", rank=lab.RANK, alpha=lab.RANK, targets=["linear"])
    layer = model.get_base_model().linear
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    a.data = 0.1 * start.clone()
    optimizer = torch.optim.SGD([a, b], lr=lab.RATE / torch.linalg.matrix_norm(gradient, 2).item())
    for _ in range(60):
        optimizer.zero_grad()
        model(inputs=x, labels=x @ (weight + target).T).loss.backward()
        optimizer.step()
    _, _, a_formula, b_formula = lab.descend(0.1 * start, gradient, second, steps=60)
    assert b_formula.norm() > 0.1
    torch.testing.assert_close(a.data, a_formula, rtol=0, atol=1e-10)
    torch.testing.assert_close(b.data, b_formula, rtol=0, atol=1e-10)


def test_the_exponent_of_small_steps_is_two_over_two_kappa_and_one(monkeypatch):
    monkeypatch.setattr(lab, "RATE", 1e-6)
    assert lab.exponent(1.0) == pytest.approx(2 / 3)
    assert lab.exponent(4.0) == pytest.approx(2 / 9, rel=1e-5)
