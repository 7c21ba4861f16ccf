"""Coverage of chains: the verdict, what would refute it, and every formula against counting."""

from __future__ import annotations

import itertools

import pytest
import torch

from papers.lab.expectations import expecting, loop, the
from tunewise.papers.lab import chain_coverage as lab
from tunewise.papers.lab import chain_targets, chains
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
    afresh, m, r = chains.touched_afresh, chains.FEATURES, chains.RANK
    k = chains.LINKS
    assert expecting(outcome, f"share of columns touched by {k} links, links drawn afresh", 1.0) == "refuted"
    assert expecting(outcome, f"touched by {2 * k} links, links drawn afresh", k * 2 * r / m) == "refuted"
    assert expecting(outcome, f"that {k // 2} links of r-c3la leave", 1 - afresh(k // 2, r, m) / m) == "refuted"
    assert expecting(outcome, f"that {k // 2} links of rac leave", 0.25) == "refuted"


def test_columns_that_layers_share_are_refuted(monkeypatch):
    """A stream that forgets the layer's name: two layers of one shape then always take the same columns."""
    real = chains.columns_of_link

    def forgetful(method, *, layer, **rest):
        return real(method, layer="any", **rest)

    monkeypatch.setattr(chains, "columns_of_link", forgetful)
    findings, _ = lab._coverage(LabSettings(), 60)
    (shared,) = [f for f in findings if "two layers" in f.what]
    assert shared.verdict == "refuted"


def test_chains_that_forget_are_refuted(monkeypatch):
    """A permutation drawn anew at every link."""
    real = chains.columns_of_link

    def forgetful(method, *, layer, link, **rest):
        return real(method, layer=f"{layer} {link}", link=0, **rest)

    monkeypatch.setattr(chains, "columns_of_link", forgetful)
    findings, _ = lab._coverage(LabSettings(), 60)
    assert next(f for f in findings if "touched by r-c3la" in f.what).verdict == "refuted"
    assert next(f for f in findings if "attached" in f.what).verdict == "refuted"


def test_formulae_are_what_counting_gives():
    """m = 5, r = 2: all 10 pairs at each of 3 links, equally likely; to 1e-12."""
    pairs = list(itertools.combinations(range(5), 2))
    for links in (1, 2, 3):
        counts = [len(set().union(*map(set, way))) for way in itertools.product(pairs, repeat=links)]
        assert chains.touched_afresh(links, 2, 5) == pytest.approx(sum(counts) / len(counts), rel=1e-12)
    assert [chains.touched(k, 2, 5) for k in (1, 2, 3, 4)] == [2, 4, 5, 5]


def test_the_residual_is_that_of_least_squares():
    """min over B of ||D - B A||^2 by lstsq, to 1e-12; and the batch is the loop."""
    draw = torch.Generator().manual_seed(0)
    targets, rows = (torch.randn(3, n, 48, generator=draw, dtype=torch.float64) for n in (32, 12))
    for target, a in zip(targets, rows):
        b = torch.linalg.lstsq(a.T, target.T).solution.T
        expected = (target - b @ a).square().sum() / target.square().sum()
        torch.testing.assert_close(chain_targets.residual(target, a), expected, rtol=1e-12, atol=0)
    together, alone = (run(chain_targets.residual, targets, rows) for run in (batch, loop))
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)


def test_each_link_of_a_sweep_is_at_its_minimum():
    """By autograd: the gradient in the link's columns is 0 after it; one link over all columns is the target."""
    draw = torch.Generator().manual_seed(1)
    target, root = torch.randn(6, 8, generator=draw, dtype=torch.float64), torch.randn(20, 8, generator=draw).double()
    second = root.T @ root / 20
    links = [torch.tensor([0, 3]), torch.tensor([5, 1]), torch.tensor([3, 2])]
    for done in (1, 2, 3):
        update = chain_targets.sweep(target, second, links[:done]).requires_grad_()
        ((update - target) @ root.T).square().sum().backward()
        assert update.grad[:, links[done - 1]].abs().max() < 1e-10 < update.grad.abs().max()
    torch.testing.assert_close(chain_targets.sweep(target, second, [torch.arange(8)]), target, rtol=0, atol=1e-10)


def test_a_link_that_is_not_trained_to_its_end_is_refuted(monkeypatch):
    monkeypatch.setattr(chain_targets, "STEPS", 5)
    found = {f.what: f.verdict for f in chain_targets.trained(LabSettings())}
    assert found["trained c3la on correlated inputs, difference to a Gauss-Seidel sweep"] == "refuted"


def test_covering_is_not_having(outcome):
    assert the(outcome, "loss left after every column").value > 0.01
