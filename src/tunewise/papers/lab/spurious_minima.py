"""Does LoRA get stuck? Many starts of the factored problem, judged by the convex optimum.

A run is stuck where it has stopped (gradient and Hessian say: a local minimum) above the minimum that FISTA has
proved. The theorem: never at a rank with r (r + 1) / 2 > K N. One stuck start there refutes it; at rank 1 some are
stuck, which shows that the experiment can see it. Problems and starts: `tunewise.papers.lab.lazy_problem`, `.factored`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunewise.papers.lab.batched import batch, generator, normal, speedup
from tunewise.papers.lab.contract import Curve, Finding, Outcome, Plot, Settings, Speedup, exactly
from tunewise.papers.lab.factored import State, descend, least_curvature, settle, stacked
from tunewise.papers.lab.fits import band
from tunewise.papers.lab.lazy_problem import Optimum, Problems, random_problems, solve
from tunewise.papers.lab.registry import experiment
from tunewise.theory import rank_without_spurious_minima

SIZE = 8  # m = n
SIZES = ((1, 6), (2, 5), (3, 7))  # K and N
PENALTY = 0.2  # of the one that makes 0 the optimum
ABOVE = 1e-6  # of the optimum: further above it is not at the optimum
STOPPED = 1e-6  # slope of a run that has stopped
SCALES = (0.03, 0.3, 3.0)  # of a start's entries; as many again start as LoRA does, from u = 0

EXPECTED: dict[str, tuple[float, float]] = {
    "stuck": (0, 0),
    "gap": (0, 1e-8),
    "control": (1, math.inf),
}


@dataclass(frozen=True)
class Ended:
    """How the starts of one rank ended; a row a problem, a column a start."""

    rank: int
    minimum: Tensor
    """At a local minimum above the convex optimum."""
    unfinished: Tensor
    """Neither at the optimum nor at a local minimum when steps ran out."""
    reachable: Tensor
    """(P,): the optimum that FISTA found has at most this rank."""

    @property
    def stuck(self) -> int:
        """Starts at a local minimum above an optimum that the rank could reach."""
        return int(self.minimum[self.reachable].sum())


def run(settings: Settings) -> Outcome:
    """See the module."""
    problems_each, starts_each = settings.of(quick=12, full=64), settings.of(quick=12, full=48)
    findings: list[Finding] = []
    curves: list[Curve] = []
    uprights: list[tuple[str, float]] = []
    ones: list[Ended] = []
    words: list[str] = []
    for outputs, samples in SIZES:
        problems = random_problems(settings.seed, problems_each, outputs, samples, SIZE, PENALTY, settings.device)
        optimum = solve(problems)
        threshold = int(rank_without_spurious_minima(outputs, samples))
        by_rank = end_of_starts(problems, optimum, range(1, threshold + 1), starts_each, settings)
        name = f"K N = {outputs * samples}"
        findings.append(
            exactly(
                f"largest proved distance of FISTA to the minimum, over the value, {name}",
                float((optimum.gap / optimum.value).max()),
                EXPECTED["gap"],
                "the judge must be right",
            )
        )
        *below, last = by_rank
        stuck, unfinished = int(last.minimum.sum()), int(last.unfinished.sum())
        findings.append(
            Finding(
                f"starts stuck at rank {threshold}, {name}",
                stuck,
                stuck,
                stuck + unfinished,
                EXPECTED["stuck"],
                f"of {last.minimum.numel():,}; r (r + 1) / 2 > K N from here on. The interval ends at stuck plus "
                "unfinished",
            )
        )
        findings += [
            exactly(
                f"starts stuck at rank {e.rank}, {name}",
                e.stuck,
                None,
                f"of {starts_each * int(e.reachable.sum()):,} whose optimum has at most this rank; below the threshold",
            )
            for e in below
        ]
        ones.append(by_rank[0])
        uprights.append((f"threshold, {name}", threshold))
        curves.append(_curve(name, by_rank))
        words.append(
            f"{name}: {problems_each} problems, whose optima have the ranks {_tally(optimum.rank)}; {starts_each} "
            "starts of each at every rank."
        )
    findings.append(
        exactly(
            "starts stuck at rank 1, all sizes",
            sum(e.stuck for e in ones),
            EXPECTED["control"],
            "a control, where the optimum has rank 1: spurious minima exist and are seen",
        )
    )
    return Outcome(
        findings=findings,
        plots=[
            Plot(
                "Starts that end at a local minimum above the convex optimum",
                "rank r",
                "share of starts",
                curves,
                uprights=uprights,
                caption="Problems whose optimum has a higher rank than r included: rank r can't reach it there. "
                "Intervals are 95 % over problems.",
            )
        ],
        words=[
            f"Squared error, m = n = {SIZE}, features Gaussian or of one layer, a planted update of rank 1 with and "
            f"without noise, lam {PENALTY:g} of the one that makes 0 the optimum; starts at three scales and LoRA's "
            "own, u = 0.",
            *words,
            "The threshold is sufficient, not necessary: starts stop getting stuck far below it. The theorem is for "
            "almost every small perturbation of the penalty; random problems are such.",
        ],
        speedups=[_speedup(settings)],
    )


def end_of_starts(
    problems: Problems, optimum: Optimum, ranks: Sequence[int], starts: int, settings: Settings
) -> list[Ended]:
    """Runs `starts` starts of every problem at every rank, all in one batch, and sorts their ends."""
    parts = [starting_points(problems, rank, starts, settings) for rank in ranks]
    u, v = stacked([(u, v) for u, v, _ in parts])
    rows = torch.cat([part[2] for part in parts])
    given = [t[rows] for t in problems.tensors]
    ends = settle(u, v, given)
    low = optimum.value[rows]
    above = ends.value - low > ABOVE * low
    minimum = torch.zeros_like(above)
    each = len(problems) * starts
    for place, rank in enumerate(ranks):
        here = place * each + above[place * each : (place + 1) * each].nonzero().flatten()
        if len(here):
            still, bottom = _shaken(
                ends.u[here, :, :rank], ends.v[here, :, :rank], [t[here] for t in given], low[here], settings
            )
            above[here], minimum[here] = still, still & bottom
    shape = (len(ranks), len(problems), starts)
    unfinished = (above & ~minimum).view(shape)
    return [
        Ended(rank, minimum.view(shape)[place], unfinished[place], optimum.rank <= rank)
        for place, rank in enumerate(ranks)
    ]


def _shaken(u: Tensor, v: Tensor, given: Sequence[Tensor], low: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Runs pushed off saddles, if that is where they are, and on: which are still above the optimum `low`, and which
    are at a local minimum by gradient and Hessian."""
    draw = generator(settings.seed, 12, u.shape[2], len(u))
    u, v = (t * (1 + 1e-3 * normal(draw, *t.shape).to(t)) for t in (u, v))
    ends = settle(u, v, given)
    bend = batch(least_curvature, ends.u, ends.v, *given)
    return ends.value - low > ABOVE * low, (ends.slope <= STOPPED) & (bend >= -1e-5 * given[2])


def starting_points(problems: Problems, rank: int, starts: int, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """u (S, m, r), v (S, n, r) and the problem's number (S,) of `starts` starts a problem, of four kinds in turn."""
    draw = generator(settings.seed, 11, rank, problems.outputs, problems.samples)
    total = len(problems) * starts
    u, v = (normal(draw, total, SIZE, rank, device=settings.device) for _ in range(2))
    kinds = torch.arange(total, device=u.device) % (len(SCALES) + 1)
    scales = torch.tensor([*SCALES, 1 / math.sqrt(SIZE)], dtype=u.dtype, device=u.device)[kinds, None, None]
    as_lora = (kinds == len(SCALES))[:, None, None]
    return torch.where(as_lora, 0.0, scales * u), scales * v, torch.arange(total, device=u.device) // starts


def _speedup(settings: Settings) -> Speedup:
    problems = random_problems(settings.seed, 16, 1, 6, SIZE, PENALTY, settings.device)
    u, v, rows = starting_points(problems, 2, 16, settings)
    step = torch.full((len(rows),), 0.1, dtype=u.dtype, device=u.device)

    def block(u: Tensor, v: Tensor, step: Tensor, *problem: Tensor) -> Tensor:
        return descend(State(u, v, step), *problem, steps=20).u

    return speedup("20 steps of descent", block, u, v, step, *(t[rows] for t in problems.tensors), looped=4)


def _curve(name: str, by_rank: Sequence[Ended]) -> Curve:
    mean, low, high = band([list(row) for row in zip(*(e.minimum.double().mean(1).tolist() for e in by_rank))])
    return Curve(name, [e.rank for e in by_rank], mean, [max(x, 0.0) for x in low], [min(x, 1.0) for x in high])


def _tally(ranks: Tensor) -> str:
    counts = torch.bincount(ranks).tolist()
    return ", ".join(f"{rank} ({times} x)" for rank, times in enumerate(counts) if times)


EXPERIMENT = experiment("spurious-minima", run)
