"""cla and columns of W under rescaled optimizers: the verdict, what would refute it, the steps against torch's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

import tunewise
from papers.lab.expectations import loop
from tunewise.papers.lab import equivalences as lab
from tunewise.papers.lab.batched import batch, generator
from tunewise.papers.lab.contract import LabSettings, overall

RULES = {
    "sgd": lab.Rule("sgd", 0.05),
    "momentum": lab.Rule("sgd", 0.05, momentum=0.9),
    "clipped": lab.Rule("sgd", 0.05, norm=0.1),
    "adam": lab.Rule("adam", 0.01),
    "adam, large eps": lab.Rule("adam", 0.01, epsilon=1e-2),
    "adamw": lab.Rule("adam", 0.01, decay=0.3),
}


@pytest.fixture(scope="module", params=[0, pytest.param(1, marks=pytest.mark.slow)], ids=["seed 0", "seed 1"])
def outcome(request):
    return lab.run(LabSettings(seed=request.param))


def test_equal_pairs_stay_together_and_the_others_part(outcome):
    assert overall(outcome.findings) == "confirmed"


@pytest.mark.parametrize("case", lab.CASES, ids=[case.name for case in lab.CASES])
def test_the_opposite_of_each_claim_is_refuted(outcome, case):
    """A pair that stays together does not part, a pair that parts is not together."""
    (finding,) = [f for f in outcome.findings if f.what.startswith(f"cla and the columns under {case.name}: ")]
    opposite = (lab.DIFFERENT, 2.0) if case.equal else (0.0, lab.EQUAL)
    assert finding.verdict == "confirmed"
    assert replace(finding, expected=opposite).verdict == "refuted"


@pytest.mark.parametrize("power", [0, 1, 3])
def test_sgd_at_another_power_of_s_is_refuted(monkeypatch, power):
    case = replace(lab.CASES[0], columns=replace(lab.CASES[0].columns, rate=power))
    monkeypatch.setattr(lab, "CASES", (case, lab.CASES[1], lab.CASES[2]))
    monkeypatch.setattr(lab, "STEPS", 20)
    assert overall(lab.run(LabSettings()).findings) == "refuted"


@pytest.mark.parametrize("rate", [0, 2])
def test_attached_adam_at_another_power_of_s_is_refuted(monkeypatch, rate):
    """The package's pairs alone, on the paper's s^2 and on no scaling."""
    case = replace(lab.CASES[2], columns=replace(lab.CASES[2].columns, rate=rate))
    monkeypatch.setattr(lab, "CASES", (*lab.CASES[:2], case))
    found = [f for f in lab._package(LabSettings()) if case.name in f.what and " and " in f.what]
    assert len(found) == 3 and all(f.verdict == "refuted" for f in found)


@pytest.mark.parametrize("name", list(RULES))
def test_steps_are_torchs_own(name):
    """SGD, clip_grad_norm_, AdamW of torch on cla's B in the same network, 25 steps, to 1e-12."""
    rule = RULES[name]
    drawn = lab.problem(generator(0, 5), 2.0)
    w1, w2, s1, s2, x, y, s = drawn
    factors = [torch.zeros(len(w), lab.RANK, dtype=torch.float64, requires_grad=True) for w in (w1, w2)]
    optimizer = lab._optimizer(rule, factors, 2.0)
    path = []
    for _ in range(25):
        optimizer.zero_grad()
        lab.loss(w1 + s * factors[0] @ s1, w2 + s * factors[1] @ s2, x, y).backward()
        if rule.norm < torch.inf:
            assert torch.nn.utils.clip_grad_norm_(factors, rule.norm) > rule.norm
        optimizer.step()
        path.append(torch.cat([(s * f).detach().flatten() for f in factors]))
    found = lab.trajectory(drawn, rule, columns=False, steps=25)
    # torch adds 1e-6 to the norm that it divides by
    torch.testing.assert_close(found, torch.stack(path), rtol=0, atol=1e-4 if rule.norm < torch.inf else 1e-12)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_batch_is_the_loop_over_its_runs(name):
    case = lab.Case("", RULES[name], RULES[name], False)
    drawn = lab.problems(LabSettings(), 2)
    pair = partial(lab.pair_distance, case=case, steps=15)
    torch.testing.assert_close(batch(pair, *drawn), loop(pair, *drawn), rtol=1e-8, atol=1e-12)


def test_attached_chains_have_several_links_and_move():
    """What is compared is not two networks that stay where they are."""
    outputs, drawn = lab.attached(LabSettings(), "r-c3la", lab.ADAM, 2.0, 12, restarts=(4, 8))
    assert lab._output_change(outputs, drawn) > 1e-2
    assert not torch.equal(outputs[3], outputs[4])
    assert tunewise.CATALOG["r-c3la"].chain is not None
