r"""What a chain of k links of r columns touches, out of m (2606.13767, Proposition 1).

Columns, drawn by the package's own code:

    one after another (c3la), or runs of a permutation (r-c3la, c-paca)    min(m, k r), exactly
    contiguous random blocks (layout="block")                              mean over columns of 1 - (1 - p_c)^k
    drawn afresh at every link                                             m (1 - (1 - r / m)^k) in the mean

with p_c the chance that one block holds column c. The last two are what a chain gives up that does not remember where
it has been. What that means for a target is in `chain_targets.py`.
"""

from __future__ import annotations

from dataclasses import replace

from tunewise.catalog import CATALOG, Chain
from tunewise.papers.lab import chain_targets
from tunewise.papers.lab.batched import generator, normal
from tunewise.papers.lab.chains import (
    FEATURES,
    LINKS,
    OUTPUTS,
    RANK,
    distinct,
    selected,
    touched,
    touched_afresh,
    touched_by_blocks,
)
from tunewise.papers.lab.contract import Curve, Finding, Outcome, Plot, Settings, exactly
from tunewise.papers.lab.fits import band, measured
from tunewise.papers.lab.linear_model import LinearModel
from tunewise.papers.lab.registry import experiment

SHAPES = ((4, 48), (16, 768), (5, 48), (7, 20), (8, 8))
"""(r, m) for the exact counts; r does not divide m in two of them."""


def run(settings: Settings) -> Outcome:
    draws = settings.of(1000, 4000)
    coverage, coverage_plot = _coverage(settings, draws)
    share, share_plot, faster = chain_targets.reached(settings, settings.of(400, 2000))
    return Outcome(
        [*coverage, *share, *chain_targets.trained(settings)],
        [coverage_plot, share_plot],
        [
            f"{RANK} of {FEATURES} columns a link, {draws} chains of each law; targets {OUTPUTS} x {FEATURES} with "
            f"singular values 1 / i.",
            "The law 1 - (1 - r / m)^k is not that of this package's chains: they walk through a permutation and touch "
            "min(m, k r) columns. It is what links would cover that are drawn without regard to each other.",
            "Coverage says what a chain can express, for a target that has nothing to do with the draw. It does not "
            "say which columns matter for a task, nor that training link by link finds the best update there is.",
        ],
        [faster],
    )


def _coverage(settings: Settings, draws: int) -> tuple[list[Finding], Plot]:
    seeds = [settings.seed * 1_000_003 + i for i in range(draws)]
    findings = []
    for name in ("c3la", "r-c3la", "c-paca"):
        worst = 0
        for rank, features in SHAPES:
            links = -(-features // rank) + 2
            counts = [touched(k + 1, rank, features) for k in range(links)]
            for seed in seeds[:20]:
                found = distinct(selected(CATALOG[name], seed, links, rank, features))
                worst = max(worst, *(abs(a - b) for a, b in zip(found, counts)))
        findings.append(
            exactly(
                f"columns touched by {name}, largest difference to min(m, k r)",
                worst,
                (0.0, 0.0),
                f"20 seeds, (r, m) of {SHAPES}, two links past full coverage",
            )
        )
    findings.append(_attached(settings))
    epochs = 20
    links = len(Chain(every=3, unit="epoch").restarts(epochs * 100, 100)) + 1
    findings.append(
        exactly(
            "columns of 768 touched by the paper's schedule, rank 16",
            distinct(selected(CATALOG["r-c3la"], settings.seed, links, 16, 768))[-1],
            (112.0, 112.0),
            f"a restart every 3 of {epochs} epochs is {links} links, so 7 x 16",
        )
    )
    blocks = replace(CATALOG["r-c3la"], layout="block")
    by_block = [distinct(selected(blocks, seed, 2 * LINKS, RANK, FEATURES)) for seed in seeds]
    # One link of an adapter of its own: the stream is named after the layer, so other names are other draws.
    afresh = [
        distinct([selected(CATALOG["r-cla"], seed, 1, RANK, FEATURES, f"draw {k}")[0] for k in range(2 * LINKS)])
        for seed in seeds
    ]
    for name, rows, formula in (
        ("contiguous random blocks", by_block, touched_by_blocks),
        ("links drawn afresh", afresh, touched_afresh),
    ):
        for links in (LINKS // 2, LINKS, 2 * LINKS):
            expected = formula(links, RANK, FEATURES) / FEATURES
            findings.append(
                measured(
                    f"share of columns touched by {links} links, {name}",
                    [row[links - 1] / FEATURES for row in rows],
                    (expected - 0.015, expected + 0.015),
                    f"formula: {expected:.4f}; interval over {draws} chains",
                )
            )
    pairs = [
        [set(selected(CATALOG["r-c3la"], seed, 1, RANK, FEATURES, layer)[0].tolist()) for layer in ("one", "other")]
        for seed in seeds
    ]
    findings.append(
        measured(
            "columns that two layers of one shape share, of those of a link",
            [len(one & other) / RANK for one, other in pairs],
            (RANK / FEATURES - 0.03, RANK / FEATURES + 0.03),
            f"r / m = {RANK / FEATURES:.4f} where layers draw independently",
        )
    )
    x = list(range(1, 2 * LINKS + 1))
    curves = [
        Curve(
            "c3la, r-c3la, c-paca",
            x,
            [c / FEATURES for c in distinct(selected(CATALOG["r-c3la"], settings.seed, 2 * LINKS, RANK, FEATURES))],
        )
    ]
    for name, rows in (("random blocks", by_block), ("drawn afresh", afresh)):
        mean, low, high = band([[c / FEATURES for c in row] for row in rows])
        curves.append(Curve(name, x, mean, low, high))
    for name, law in (
        ("theory, min(1, k r / m)", touched),
        ("theory, blocks", touched_by_blocks),
        ("theory, 1 - (1 - r / m)^k", touched_afresh),
    ):
        curves.append(Curve(name, x, [law(k, RANK, FEATURES) / FEATURES for k in x], theory=True))
    return findings, Plot("Columns touched by a chain", "links k", "share of columns", curves)


def _attached(settings: Settings) -> Finding:
    """Whether adapters on a model have the columns that were counted."""
    import tunewise
    from tunewise.methods.attachment import layer_adapters
    from tunewise.methods.columns import ColumnAdapter

    differing = 0
    for name in ("c3la", "r-c3la", "c-paca"):
        model = LinearModel(normal(generator(settings.seed, 3), OUTPUTS, FEATURES))
        model = tunewise.attach(model, name, rank=RANK, targets=["linear"], seed=settings.seed)
        for link, expected in enumerate(selected(CATALOG[name], settings.seed, LINKS + 2, RANK, FEATURES, "linear")):
            if link:
                tunewise.restart(model)
            (adapter,) = layer_adapters(model)
            assert isinstance(adapter, ColumnAdapter)
            differing += int((adapter.columns != expected).sum())
    return exactly(
        "columns of attached chains that are not the counted ones",
        differing,
        (0.0, 0.0),
        f"attach and restart, three methods, {LINKS + 2} links",
    )


EXPERIMENT = experiment("chain-coverage", run)
