r"""The columns that a chain of k links of r columns touches, out of m (2606.13767, Proposition 1).

    in order (c3la), or runs of a permutation (r-c3la, c-paca)    min(m, k r), exactly
    drawn independently at every link                             m (1 - (1 - r / m)^k) on average

`chain_targets.py` has the consequences for a target.
"""

from __future__ import annotations

from collections.abc import Sequence

import tunewise
from tunewise.catalog import CATALOG, Chain
from tunewise.methods.adapters.base import layer_adapters
from tunewise.papers.lab import chain_targets
from tunewise.papers.lab.batched import generator, normal
from tunewise.papers.lab.chains import FEATURES, LINKS, OUTPUTS, RANK, distinct, selected, touched, touched_afresh
from tunewise.papers.lab.contract import Finding, LabSettings, Measurement, Plot, PlotCurve
from tunewise.papers.lab.linear_model import LinearModel

SHAPES = ((4, 48), (16, 768), (5, 48), (7, 20), (8, 8))
"""(r, m) for the exact counts; r does not divide m in two of them."""
CHAINS = ("c3la", "r-c3la", "c-paca")


def run(settings: LabSettings) -> Measurement:
    draws = settings.choose(1000, 4000)
    coverage, coverage_plot = _coverage(settings, draws)
    share, share_plot = chain_targets.reached(settings, settings.choose(400, 2000))
    return Measurement(
        [*coverage, *share, *chain_targets.trained(settings)],
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


def _coverage(settings: LabSettings, draws: int) -> tuple[list[Finding], Plot]:
    seeds = [settings.seed * 1_000_003 + i for i in range(draws)]
    findings = [_exact_count(name, seeds[:20]) for name in CHAINS] + [_attached(settings), _schedule(settings)]
    # The random stream depends on the layer's name, so every name gives an independent link.
    afresh = [
        distinct([selected(CATALOG["r-cla"], seed, 1, RANK, FEATURES, f"draw {k}")[0] for k in range(2 * LINKS)])
        for seed in seeds
    ]
    for links in (LINKS // 2, LINKS, 2 * LINKS):
        share = touched_afresh(links, RANK, FEATURES) / FEATURES
        what = f"share of columns touched by {links} links, links drawn afresh"
        values = [row[links - 1] / FEATURES for row in afresh]
        findings.append(Finding.mean(what, values, (share - 0.015, share + 0.015), f"formula: {share:.4f}"))
    findings.append(_shared_by_layers(seeds))
    return findings, _plot(settings, afresh)


def _exact_count(name: str, seeds: Sequence[int]) -> Finding:
    worst = 0
    for rank, features in SHAPES:
        links = -(-features // rank) + 2
        expected = [touched(k + 1, rank, features) for k in range(links)]
        for seed in seeds:
            counts = distinct(selected(CATALOG[name], seed, links, rank, features))
            worst = max(worst, *(abs(a - b) for a, b in zip(counts, expected)))
    what = f"columns touched by {name}, largest difference to min(m, k r)"
    return Finding.exact(what, worst, (0.0, 0.0), f"20 seeds, (r, m) of {SHAPES}, two links past full coverage")


def _schedule(settings: LabSettings) -> Finding:
    epochs = 20
    links = len(Chain(every=3, unit="epoch").restarts(epochs * 100, 100)) + 1
    return Finding.exact(
        "columns of 768 touched by the paper's schedule, rank 16",
        distinct(selected(CATALOG["r-c3la"], settings.seed, links, 16, 768))[-1],
        (112.0, 112.0),
        f"a restart every 3 of {epochs} epochs is {links} links, so 7 x 16",
    )


def _attached(settings: LabSettings) -> Finding:
    """Whether adapters on a model have the columns that were counted."""
    differing = 0
    for name in CHAINS:
        model = LinearModel(normal(generator(settings.seed, 3), OUTPUTS, FEATURES))
        model = tunewise.attach(model, name, rank=RANK, targets=["linear"], seed=settings.seed)
        for link, expected in enumerate(selected(CATALOG[name], settings.seed, LINKS + 2, RANK, FEATURES, "linear")):
            if link:
                tunewise.restart(model)
            (adapter,) = layer_adapters(model)
            differing += int((adapter.where != expected).sum())
    note = f"attach and restart, three methods, {LINKS + 2} links"
    return Finding.exact("columns of attached chains that are not the counted columns", differing, (0.0, 0.0), note)


def _shared_by_layers(seeds: Sequence[int]) -> Finding:
    pairs = [
        [set(selected(CATALOG["r-c3la"], seed, 1, RANK, FEATURES, layer)[0].tolist()) for layer in ("one", "other")]
        for seed in seeds
    ]
    share = RANK / FEATURES
    return Finding.mean(
        "share of a link's columns that two layers of one shape have in common",
        [len(first & second) / RANK for first, second in pairs],
        (share - 0.03, share + 0.03),
        f"r / m = {share:.4f} where layers draw independently",
    )


def _plot(settings: LabSettings, afresh: list[list[int]]) -> Plot:
    x = list(range(1, 2 * LINKS + 1))
    counted = distinct(selected(CATALOG["r-c3la"], settings.seed, 2 * LINKS, RANK, FEATURES))
    curves = [
        PlotCurve("c3la, r-c3la, c-paca", x, [c / FEATURES for c in counted]),
        PlotCurve.mean("drawn afresh", x, [[c / FEATURES for c in row] for row in afresh]),
    ]
    for name, formula in (("theory, min(1, k r / m)", touched), ("theory, 1 - (1 - r / m)^k", touched_afresh)):
        curves.append(PlotCurve.theory(name, x, [formula(k, RANK, FEATURES) / FEATURES for k in x]))
    return Plot("Columns touched by a chain", "links k", "share of columns", curves)
