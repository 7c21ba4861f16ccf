r"""The columns that a chain of k links of r columns touches, out of m (2606.13767, Proposition 1).

    in order (c3la), or runs of a permutation (r-c3la, c-paca)    min(m, k r), exactly
    drawn independently at every link                             m (1 - (1 - r / m)^k) on average

What it leaves of a target dW = D (n x m) at best [derived]: D's rows are projected on the span P of the rows of all A,
and E ||D - D P||^2 is (1 - k r / m) ||D||^2 for every D, for sampled columns and for random A (rac): in both cases E P
is a multiple of I by symmetry. The best rank k r is D's own top singular space (Eckart-Young).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tunewise.catalog import CATALOG, Chain
from tunewise.methods.draws import columns_of_link, one_hot, random_factor
from tunewise.papers.lab.batched import batch, generator, normal
from tunewise.papers.lab.contract import Finding, LabSettings, Measurement, Plot, PlotCurve

RANK, FEATURES, OUTPUTS = 4, 48, 32
LINKS = FEATURES // RANK
SHAPES = ((4, 48), (16, 768), (5, 48), (7, 20), (8, 8))
"""(r, m) for the exact counts; r does not divide m in two of them."""
CHAINS = ("c3la", "r-c3la", "c-paca")
DECAY = 1.0  # a target's singular values are i^-DECAY

Shares = list[list[float]]
"""Shares of ||D||^2 that are left: a row for each number of links, a column for each target."""


def touched(links: int, rank: int, features: int) -> int:
    """Columns touched by a chain that takes columns in order, or by runs of a permutation."""
    return min(features, links * rank)


def touched_afresh(links: int, rank: int, features: int) -> float:
    """Expected number for links that draw r distinct columns independently: m (1 - (1 - r / m)^k)."""
    return features * (1 - (1 - rank / features) ** links)


def left_over(links: int) -> float:
    """Expected share of ||D||^2 outside k r distinct columns, or outside k random row spaces of rank r."""
    return 1 - touched(links, RANK, FEATURES) / FEATURES


def selected(
    name: str, seed: int, links: int, rank: int = RANK, features: int = FEATURES, layer: str = "layer"
) -> list[Tensor]:
    """The columns of each link, from the code that attached methods use."""
    method = CATALOG[name]
    return [columns_of_link(method, seed=seed, layer=layer, link=k, rank=rank, features=features) for k in range(links)]


def distinct(columns: Sequence[Tensor]) -> list[int]:
    """The number of columns that the first 1, 2, ... links touch."""
    return [len(set(torch.cat(list(columns[: k + 1])).tolist())) for k in range(len(columns))]


def residual(target: Tensor, rows: Tensor) -> Tensor:
    """min over B of ||D - B A||_F^2 / ||D||_F^2 for D (n, m) and the stacked A (d, m), d <= m, of full rank."""
    basis = torch.linalg.qr(rows.mT).Q
    return (target - target @ basis @ basis.mT).square().sum() / target.square().sum()


def run(settings: LabSettings) -> Measurement:
    draws, targets = settings.choose(1000, 4000), settings.choose(400, 2000)
    coverage, coverage_plot = _coverage(settings, [settings.seed * 1_000_003 + i for i in range(draws)])
    share, share_plot = _reached(settings, [settings.seed * 1_000_003 + i for i in range(targets)])
    return Measurement(
        [*coverage, *share],
        [coverage_plot, share_plot],
        [
            f"{RANK} of {FEATURES} columns a link, {draws} chains of each kind; targets {OUTPUTS} x {FEATURES} with "
            f"singular values 1 / i.",
            "1 - (1 - r / m)^k is not the coverage of this package's chains: they follow a permutation and touch "
            "min(m, k r) columns. It would be the coverage of links that are drawn independently.",
            "Coverage says what a chain can express, for a target that is independent of the draw. It does not say "
            "which columns matter for a task, nor that training link by link finds the best update.",
        ],
    )


def _coverage(settings: LabSettings, seeds: Sequence[int]) -> tuple[list[Finding], Plot]:
    findings = [*(_exact_count(name, seeds[:20]) for name in CHAINS), _schedule(settings)]
    # The random stream depends on the layer's name, so every name gives an independent link.
    afresh = [distinct([selected("r-cla", seed, 1, layer=f"draw {k}")[0] for k in range(2 * LINKS)]) for seed in seeds]
    for links in (LINKS // 2, LINKS, 2 * LINKS):
        share = touched_afresh(links, RANK, FEATURES) / FEATURES
        what = f"share of columns touched by {links} links, links drawn afresh"
        values = [row[links - 1] / FEATURES for row in afresh]
        findings.append(Finding.mean(what, values, (share - 0.015, share + 0.015), f"formula: {share:.4f}"))
    x = list(range(1, 2 * LINKS + 1))
    counted = distinct(selected("r-c3la", settings.seed, 2 * LINKS))
    curves = [
        PlotCurve("c3la, r-c3la, c-paca", x, [c / FEATURES for c in counted]),
        PlotCurve.mean("drawn afresh", x, [[c / FEATURES for c in row] for row in afresh]),
    ]
    for name, formula in (("theory, min(1, k r / m)", touched), ("theory, 1 - (1 - r / m)^k", touched_afresh)):
        curves.append(PlotCurve.theory(name, x, [formula(k, RANK, FEATURES) / FEATURES for k in x]))
    return [*findings, _shared_by_layers(seeds)], Plot(
        "Columns touched by a chain", "links k", "share of columns", curves
    )


def _exact_count(name: str, seeds: Sequence[int]) -> Finding:
    worst = 0
    for rank, features in SHAPES:
        links = -(-features // rank) + 2
        expected = [touched(k + 1, rank, features) for k in range(links)]
        for seed in seeds:
            counts = distinct(selected(name, seed, links, rank, features))
            worst = max(worst, *(abs(a - b) for a, b in zip(counts, expected)))
    what = f"columns touched by {name}, largest difference to min(m, k r)"
    return Finding.exact(what, worst, (0.0, 0.0), f"20 seeds, (r, m) of {SHAPES}, two links past full coverage")


def _schedule(settings: LabSettings) -> Finding:
    epochs = 20
    links = len(Chain(every=3, unit="epoch").restarts(epochs * 100, 100)) + 1
    return Finding.exact(
        "columns of 768 touched by the paper's schedule, rank 16",
        distinct(selected("r-c3la", settings.seed, links, 16, 768))[-1],
        (112.0, 112.0),
        f"a restart every 3 of {epochs} epochs is {links} links, so 7 x 16",
    )


def _shared_by_layers(seeds: Sequence[int]) -> Finding:
    pairs = [
        [set(selected("r-c3la", seed, 1, layer=layer)[0].tolist()) for layer in ("one", "other")] for seed in seeds
    ]
    share = RANK / FEATURES
    return Finding.mean(
        "share of a link's columns that two layers of one shape have in common",
        [len(first & second) / RANK for first, second in pairs],
        (share - 0.03, share + 0.03),
        f"r / m = {share:.4f} where layers draw independently",
    )


def _reached(settings: LabSettings, seeds: Sequence[int]) -> tuple[list[Finding], Plot]:
    """Best approximation of targets by chains of k links."""
    targets = torch.stack([_target(generator(settings.seed, 1, i)) for i in range(len(seeds))])
    largest = targets.square().sum(1).argsort(descending=True)
    rows = {
        "r-c3la": torch.stack([one_hot(torch.cat(selected("r-c3la", seed, LINKS)), FEATURES) for seed in seeds]),
        "rac": torch.stack([torch.cat([_factor(seed, link) for link in range(LINKS)]) for seed in seeds]),
        "largest columns": torch.stack([one_hot(order, FEATURES) for order in largest]),
    }
    counts = list(range(1, LINKS + 1))
    shares: dict[str, Shares] = {
        name: [batch(residual, targets, factors.double()[:, : k * RANK]).tolist() for k in counts]
        for name, factors in rows.items()
    }
    values = torch.linalg.svdvals(targets).square()
    outside = (values.flip(-1).cumsum(-1).flip(-1) / values.sum(-1, keepdim=True)).tolist()  # of the top i values
    floor = [[row[k * RANK] if k * RANK < OUTPUTS else 0.0 for row in outside] for k in counts]
    tables = {**shares, "best rank k r": floor}
    curves = [PlotCurve.mean(name, counts, list(zip(*table))) for name, table in tables.items()]
    curves.append(PlotCurve.theory("theory, 1 - k r / m", counts, [left_over(k) for k in counts]))
    plot = Plot("What a chain leaves of a target", "links k", "share of ||D||^2", curves)
    return _reached_findings(shares, floor), plot


def _reached_findings(shares: dict[str, Shares], floor: Shares) -> list[Finding]:
    findings = []
    for name in ("r-c3la", "rac"):
        for k in (LINKS // 4, LINKS // 2, 3 * LINKS // 4):
            expected = left_over(k)
            what = f"share of ||D||^2 that {k} links of {name} leave"
            note = f"derived: 1 - k r / m = {expected:.3f} for every D; interval over {len(floor[0])} targets and draws"
            findings.append(Finding.mean(what, shares[name][k - 1], (expected - 0.025, expected + 0.025), note))
        what = f"share of ||D||^2 that {LINKS} links of {name} leave, largest"
        note = "Proposition 1: with k r = m everything can be expressed"
        findings.append(Finding.exact(what, max(shares[name][-1]), (-1e-12, 1e-12), note))
    below = max(f - s for name in shares for low, part in zip(floor, shares[name]) for f, s in zip(low, part))
    what, note = "largest distance below the best rank k r", "Eckart-Young: never; k from 1"
    return [*findings, Finding.exact(what, below, (-torch.inf, 1e-12), note)]


def _target(draw: torch.Generator) -> Tensor:
    """A random D (OUTPUTS, FEATURES) with singular values i^-DECAY."""
    left = torch.linalg.qr(normal(draw, OUTPUTS, OUTPUTS)).Q
    right = torch.linalg.qr(normal(draw, FEATURES, OUTPUTS)).Q
    return (left * torch.arange(1, OUTPUTS + 1, dtype=torch.float64) ** -DECAY) @ right.T


def _factor(seed: int, link: int) -> Tensor:
    return random_factor(CATALOG["rac"].lora_a_init, seed=seed, layer="layer", link=link, rank=RANK, features=FEATURES)
