"""Whether LoRA gets stuck: many starts of the factored problem against the convex optimum (arXiv 2402.11867).

A run is stuck where gradient and Hessian show a local minimum above the minimum that FISTA has proved. The theorem: no
run of a rank with r (r + 1) / 2 > K N is stuck. At rank 1 some are, which shows that the experiment can detect it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunewise.papers.lab.batched import batch, generator, normal
from tunewise.papers.lab.contract import Finding, LabSettings, Measurement, Plot, PlotCurve
from tunewise.papers.lab.lazy_problem import (
    Optimum,
    Problems,
    least_curvature,
    random_problems,
    settle,
    solve,
    stacked,
)
from tunewise.theory import rank_without_spurious_minima

SIZE = 8  # m = n
SIZES = ((1, 6), (2, 5), (3, 7))  # K and N
PENALTY = 0.2  # of the smallest penalty with the optimum 0
ABOVE = 1e-6  # a run is above the optimum from this share of it on
STOPPED = 1e-6  # slope of a run that has stopped
SCALES = (0.03, 0.3, 3.0)  # of a start's entries; the fourth kind starts as LoRA does, from u = 0


@dataclass(frozen=True)
class RankEnds:
    """How the starts of one rank ended; a row for each problem, a column for each start."""

    rank: int
    minimum: Tensor  # at a local minimum above the convex optimum
    unfinished: Tensor  # neither at the optimum nor at a local minimum after the last step
    reachable: Tensor  # (P,): the optimum has at most this rank

    @property
    def stuck(self) -> int:
        """Starts at a local minimum although the rank can express the optimum."""
        return int(self.minimum[self.reachable].sum())


def run(settings: LabSettings) -> Measurement:
    count, starts = settings.choose(quick=12, full=64), settings.choose(quick=12, full=48)
    findings: list[Finding] = []
    curves: list[PlotCurve] = []
    thresholds: list[tuple[str, float]] = []
    notes: list[str] = []
    stuck_at_1 = 0
    for outputs, samples in SIZES:
        problems = random_problems(settings.seed, count, outputs, samples, SIZE, PENALTY)
        optimum = solve(problems)
        threshold = int(rank_without_spurious_minima(outputs, samples))
        by_rank = end_of_starts(problems, optimum, range(1, threshold + 1), starts, settings)
        name = f"K N = {outputs * samples}"
        findings += _findings(name, optimum, by_rank, starts)
        stuck_at_1 += by_rank[0].stuck
        thresholds.append((f"threshold, {name}", threshold))
        curves.append(_curve(name, by_rank))
        ranks = ", ".join(f"{r} ({n} x)" for r, n in enumerate(torch.bincount(optimum.rank).tolist()) if n)
        notes.append(f"{name}: {count} problems with optima of ranks {ranks}; {starts} starts of each at every rank.")
    note = "a control, where the optimum has rank 1: spurious minima exist and are detected"
    findings.append(Finding.exact("starts stuck at rank 1, all sizes", stuck_at_1, (1, math.inf), note))
    plot = Plot(
        "Starts that end at a local minimum above the convex optimum",
        "rank r",
        "share of starts",
        curves,
        thresholds=thresholds,
        caption="Includes problems with an optimum of a higher rank than r, which rank r can't reach. Intervals are "
        "95 % over problems.",
    )
    return Measurement(
        findings,
        [plot],
        [
            f"Squared error, m = n = {SIZE}, features Gaussian or of one layer, a planted update of rank 1 with and "
            f"without noise, lam {PENALTY:g} of the smallest with the optimum 0; starts at three scales, and LoRA's "
            "own start u = 0.",
            *notes,
            "The threshold is sufficient, not necessary: far below it, starts no longer get stuck. The theorem holds "
            "for almost every small perturbation of the penalty, as for random problems.",
        ],
    )


def _findings(name: str, optimum: Optimum, by_rank: Sequence[RankEnds], starts: int) -> list[Finding]:
    *below, last = by_rank
    stuck, unfinished = int(last.minimum.sum()), int(last.unfinished.sum())
    return [
        Finding.exact(
            f"largest proved distance of FISTA to the minimum, over the value, {name}",
            float((optimum.gap / optimum.value).max()),
            (0, 1e-8),
            "the reference must be right",
        ),
        Finding(
            f"starts stuck at rank {last.rank}, {name}",
            stuck,
            stuck,
            stuck + unfinished,
            (0, 0),
            f"of {last.minimum.numel():,}; the lowest rank with r (r + 1) / 2 > K N. The interval ends at stuck plus "
            "unfinished",
        ),
        *(
            Finding.exact(
                f"starts stuck at rank {ends.rank}, {name}",
                ends.stuck,
                None,
                f"of {starts * int(ends.reachable.sum()):,} with an optimum of at most this rank; below the threshold",
            )
            for ends in below
        ),
    ]


def end_of_starts(
    problems: Problems, optimum: Optimum, ranks: Sequence[int], starts: int, settings: LabSettings
) -> list[RankEnds]:
    """Runs `starts` starts of every problem at every rank, in one batch."""
    parts = [starting_points(problems, rank, starts, settings) for rank in ranks]
    u, v = stacked([(u, v) for u, v, _ in parts])
    rows = torch.cat([part[2] for part in parts])
    tensors = [t[rows] for t in problems.tensors]
    ends = settle(u, v, tensors)
    low = optimum.value[rows]
    above = ends.value - low > ABOVE * low
    minimum = torch.zeros_like(above)
    each = len(problems) * starts
    for place, rank in enumerate(ranks):
        here = place * each + above[place * each : (place + 1) * each].nonzero().flatten()
        if len(here):
            factors = ends.u[here, :, :rank], ends.v[here, :, :rank]
            still, bottom = _shake(*factors, [t[here] for t in tensors], low[here], settings)
            above[here], minimum[here] = still, still & bottom
    shape = (len(ranks), len(problems), starts)
    minimum, unfinished = minimum.view(shape), (above & ~minimum).view(shape)
    reachable = [optimum.rank <= rank for rank in ranks]
    return [RankEnds(*each) for each in zip(ranks, minimum, unfinished, reachable)]


def _shake(
    u: Tensor, v: Tensor, tensors: Sequence[Tensor], low: Tensor, settings: LabSettings
) -> tuple[Tensor, Tensor]:
    """Moves runs off saddles and continues: which are still above the optimum `low`, and which are at a minimum."""
    draw = generator(settings.seed, 12, u.shape[2], len(u))
    u, v = (t * (1 + 1e-3 * normal(draw, *t.shape)) for t in (u, v))
    ends = settle(u, v, tensors)
    curvature = batch(least_curvature, ends.u, ends.v, *tensors)
    return ends.value - low > ABOVE * low, (ends.slope <= STOPPED) & (curvature >= -1e-5 * tensors[2])


def starting_points(problems: Problems, rank: int, starts: int, settings: LabSettings) -> tuple[Tensor, Tensor, Tensor]:
    """u (S, m, r), v (S, n, r) and the problem's number (S,) for `starts` starts per problem, of four kinds in turn."""
    draw = generator(settings.seed, 11, rank, problems.outputs, problems.samples)
    total = len(problems) * starts
    u, v = (normal(draw, total, SIZE, rank) for _ in range(2))
    kinds = torch.arange(total) % (len(SCALES) + 1)
    scales = torch.tensor([*SCALES, 1 / math.sqrt(SIZE)], dtype=u.dtype)[kinds, None, None]
    as_lora = (kinds == len(SCALES))[:, None, None]
    return torch.where(as_lora, 0.0, scales * u), scales * v, torch.arange(total) // starts


def _curve(name: str, by_rank: Sequence[RankEnds]) -> PlotCurve:
    ranks, rows = [e.rank for e in by_rank], zip(*(e.minimum.double().mean(1).tolist() for e in by_rank))
    curve = PlotCurve.mean(name, ranks, list(rows))
    return PlotCurve(name, ranks, curve.y, [max(x, 0.0) for x in curve.low], [min(x, 1.0) for x in curve.high])
