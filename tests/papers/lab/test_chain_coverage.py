"""Coverage of chains: the verdict, what would refute it, and every formula against counting."""

from __future__ import annotations

import itertools

import pytest
import torch

import tunewise
from papers.lab.expectations import LinearModel, expecting, loop
from tunewise.papers.lab import chain_coverage as lab
from tunewise.papers.lab.batched import batch
from tunewise.papers.lab.contract import LabSettings, overall


@pytest.fixture(scope="module", params=[0, 1], ids=["seed 0", "seed 1"])
def outcome(request):
    return lab.run(LabSettings(seed=request.param))


def test_the_formulae_are_confirmed(outcome):
    assert overall(outcome.findings) == "confirmed"


def test_wrong_formulae_are_refuted(outcome):
    """The law of independent columns for runs of a permutation and the other way round, k r / m without a cap,
    (k r / m)^2."""
    afresh, m, r = lab.touched_afresh, lab.FEATURES, lab.RANK
    k = lab.LINKS
    assert expecting(outcome, f"share of columns touched by {k} links, links drawn afresh", 1.0) == "refuted"
    assert expecting(outcome, f"touched by {2 * k} links, links drawn afresh", k * 2 * r / m) == "refuted"
    assert expecting(outcome, f"that {k // 2} links of r-c3la leave", 1 - afresh(k // 2, r, m) / m) == "refuted"
    assert expecting(outcome, f"that {k // 2} links of rac leave", 0.25) == "refuted"


def test_columns_that_layers_share_are_refuted(monkeypatch):
    """A stream that forgets the layer's name: two layers of one shape then always take the same columns."""
    real = lab.columns_of_link

    def forgetful(method, *, layer, **rest):
        return real(method, layer="any", **rest)

    monkeypatch.setattr(lab, "columns_of_link", forgetful)
    findings, _ = lab._coverage(LabSettings(), range(60))
    (shared,) = [f for f in findings if "two layers" in f.what]
    assert shared.verdict == "refuted"


def test_chains_that_forget_are_refuted(monkeypatch):
    """A permutation drawn anew at every link."""
    real = lab.columns_of_link

    def forgetful(method, *, layer, link, **rest):
        return real(method, layer=f"{layer} {link}", link=0, **rest)

    monkeypatch.setattr(lab, "columns_of_link", forgetful)
    findings, _ = lab._coverage(LabSettings(), range(60))
    assert next(f for f in findings if "touched by r-c3la" in f.what).verdict == "refuted"


def test_formulae_are_what_counting_gives():
    """m = 5, r = 2: all 10 pairs at each of 3 links, equally likely; to 1e-12."""
    pairs = list(itertools.combinations(range(5), 2))
    for links in (1, 2, 3):
        counts = [len(set().union(*map(set, way))) for way in itertools.product(pairs, repeat=links)]
        assert lab.touched_afresh(links, 2, 5) == pytest.approx(sum(counts) / len(counts), rel=1e-12)
    assert [lab.touched(k, 2, 5) for k in (1, 2, 3, 4)] == [2, 4, 5, 5]


def test_the_residual_is_that_of_least_squares():
    """min over B of ||D - B A||^2 by lstsq, to 1e-12; and the batch is the loop."""
    draw = torch.Generator().manual_seed(0)
    targets, rows = (torch.randn(3, n, 48, generator=draw, dtype=torch.float64) for n in (32, 12))
    for target, a in zip(targets, rows):
        b = torch.linalg.lstsq(a.T, target.T).solution.T
        expected = (target - b @ a).square().sum() / target.square().sum()
        torch.testing.assert_close(lab.residual(target, a), expected, rtol=1e-12, atol=0)
    together, alone = (run(lab.residual, targets, rows) for run in (batch, loop))
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)


def sweep(target, second, links):
    """Block Gauss-Seidel: dW after links on these columns, each at its minimum, for the inputs' second moment."""
    update = torch.zeros_like(target)
    for columns in links:
        block = second[columns][:, columns]
        update[:, columns] += torch.linalg.solve(block, ((target - update) @ second)[:, columns].mT).mT
    return update


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_a_trained_chain_is_a_gauss_seidel_sweep_that_reaches_the_target_on_white_inputs(correlation):
    """An attached c3la, torch's SGD, every link to its minimum; touching all columns is not enough elsewhere."""
    draw = torch.Generator().manual_seed(2)
    target, weight = torch.randn(2, lab.OUTPUTS, lab.FEATURES, generator=draw, dtype=torch.float64)
    places = torch.arange(lab.FEATURES)
    second = correlation ** (places[:, None] - places[None, :]).abs().double()
    white = torch.linalg.qr(torch.randn(2 * lab.FEATURES, lab.FEATURES, generator=draw, dtype=torch.float64)).Q
    inputs = white * (2 * lab.FEATURES) ** 0.5 @ torch.linalg.cholesky(second).mT
    chain = tunewise.Chain(links=lab.LINKS)
    model = tunewise.attach(LinearModel(weight), "c3la", rank=lab.RANK, targets=["linear"], chain=chain)
    extremes = torch.linalg.eigvalsh(second[: lab.RANK, : lab.RANK])
    rate = 2 / (extremes[0] + extremes[-1]).item() / tunewise.attachment(model).scale ** 2
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    for link in range(lab.LINKS):
        if link:
            tunewise.restart(model, optimizer)
        for _ in range(150):
            optimizer.zero_grad()
            model(inputs=inputs, labels=inputs @ (weight + target).mT).loss.backward()
            optimizer.step()
    eye = torch.eye(lab.FEATURES, dtype=torch.float64)
    with torch.no_grad():
        update = model(inputs=eye, labels=torch.zeros(())).logits.T - weight
    expected = sweep(target, second, lab.selected("c3la", 0, lab.LINKS))
    torch.testing.assert_close(update, expected, rtol=0, atol=1e-9)
    error = update - target
    left = ((error @ second) * error).sum() / ((target @ second) * target).sum()
    assert (left < 1e-18) if correlation == 0 else (left > 0.01)
