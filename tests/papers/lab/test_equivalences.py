"""cla and columns of W under rescaled optimizers: the verdict, what would refute it, the steps against torch's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

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


def torch_optimizer(rule, trained, s):
    rate = rule.g * s**rule.rate
    if rule.kind == "sgd":
        return torch.optim.SGD(trained, lr=rate, momentum=rule.momentum)
    eps = rule.epsilon * s**rule.eps
    return torch.optim.AdamW(trained, lr=rate, betas=lab.BETAS, eps=eps, weight_decay=rule.decay)


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


@pytest.mark.parametrize("name", list(RULES))
def test_steps_are_torchs_own(name):
    """SGD, clip_grad_norm_, AdamW of torch on cla's B in the same network, 25 steps, to 1e-12."""
    rule = RULES[name]
    drawn = lab.problem(generator(0, 5), 2.0)
    w1, w2, s1, s2, x, y, s = drawn
    factors = [torch.zeros(len(w), lab.RANK, dtype=torch.float64, requires_grad=True) for w in (w1, w2)]
    optimizer = torch_optimizer(rule, factors, 2.0)
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


class Network(nn.Module):
    """The experiment's network as a module."""

    def __init__(self, first, second):
        super().__init__()
        self.first = nn.Linear(lab.INPUTS, lab.HIDDEN, bias=False, dtype=torch.float64)
        self.second = nn.Linear(lab.HIDDEN, lab.OUTPUTS, bias=False, dtype=torch.float64)
        self.first.weight.data.copy_(first)
        self.second.weight.data.copy_(second)

    def forward(self, x):
        return self.second(self.first(x).tanh())


def trained_outputs(method, rule, restarts, s=2.0, steps=30):
    """Outputs after every step of an attached method under torch's optimizer, and their largest change."""
    w1, w2, _, _, x, y, _ = lab.problem(generator(0, 9), s)
    model = tunewise.attach(Network(w1, w2), method, rank=lab.RANK, alpha=s * lab.RANK, targets=["first", "second"])
    optimizer = torch_optimizer(rule, [p for p in model.parameters() if p.requires_grad], s)
    outputs = [model(x).detach()]
    for step in range(steps):
        if step in restarts:
            tunewise.restart(model, optimizer)
        optimizer.zero_grad()
        (0.5 * (model(x) - y).square().sum(-1).mean()).backward()
        optimizer.step()
        outputs.append(model(x).detach())
    return torch.stack(outputs), (outputs[-1] - outputs[0]).abs().max()


@pytest.mark.parametrize("pair", [("cla", "d-paca"), ("r-cla", "paca"), ("r-c3la", "c-paca")], ids="-".join)
@pytest.mark.parametrize("case", lab.CASES[:3], ids=[case.name for case in lab.CASES[:3]])
def test_attached_pairs_stay_equal_also_over_restarts_and_only_at_the_rescaled_rate(pair, case):
    restarts = (10, 20) if pair[1] == "c-paca" else ()
    outputs, change = trained_outputs(pair[0], case.factor, restarts)
    same, _ = trained_outputs(pair[1], case.columns, restarts)
    other, _ = trained_outputs(pair[1], case.factor, restarts)
    assert change > 1e-2
    assert (outputs - same).abs().max() / change < lab.EQUAL
    assert (outputs - other).abs().max() / change > lab.DIFFERENT
