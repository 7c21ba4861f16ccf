r"""The gap of one run with a random frozen factor grows as sqrt(r / N), or not: the law of A decides.

Random labels y = +-1 and inputs x uniform on the sphere of radius sqrt(d); the network is f(x) = <b, A x> with A (r, d)
drawn once and frozen, ||b||_2 <= 1. Labels are independent of x, so no b does better than chance on new data and the
gap of b is known without a test set. Its largest value over b is what one run could do at worst:

    loss -y f              sup gap = ||A mean(y x)||_2                                (closed form)
    loss sigmoid(-y f)     sup gap = max_b mean sigmoid(y f) - 1/2, as E = 1/2        (by gradient ascent)

With A ~ N(0, s^2) and z = mean(y x), E ||A z|| = s sqrt(r) (1 - 1 / (4 r) + ..) ||z||, and ||z|| = sqrt(d / N) nearly:
slopes 1/2 and -1/2 with s^2 = 1/d; with s^2 = 1/r the rank drops out. Over draws of A the relative spread is that of
a chi variable of r degrees, 1 / sqrt(2 r) (1 + ..).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tunewise.papers.lab.batched import batch, generator, normal, speedup
from tunewise.papers.lab.contract import Curve, Finding, Outcome, Plot, Settings, exactly
from tunewise.papers.lab.fits import band, log_log_slopes, measured
from tunewise.papers.lab.registry import experiment
from tunewise.theory import random_factor_lower, random_factor_upper

WIDTH = 128  # d
RANKS = (8, 16, 32, 64, 128)
RANK = 16  # where N is varied
SAMPLES = (64, 128, 256, 512, 1024)
SAMPLE = 512  # where r is varied
ASCENT_STEPS = 40
GROUP = 48  # repetitions in memory at a time

EXPECTED: dict[str, tuple[float, float]] = {
    "slope in r": (0.45, 0.55),
    "slope in N": (-0.55, -0.45),
    "slope in r, A ~ N(0, 1/r)": (-0.05, 0.05),
    "spread": (0.9, 1.1),
    "share of the bound": (0.0, 1.0),
    "lower": (1.0, math.inf),
}
"""Tolerances: 0.05 in a slope, of which E log ||A z|| = log(r) / 2 - 1 / (2 r) takes 0.02; 10 % in the spread, of
which a chi variable takes 3 % at r = 4."""


def largest_linear_gap(x: Tensor, y: Tensor, a: Tensor) -> Tensor:
    """sup over ||b|| <= 1 of the gap of the loss -y <b, A x>. x (N, d), y (N), a (r, d)."""
    return torch.linalg.vector_norm(a @ (y @ x / len(y)))


def largest_sigmoid_gap(x: Tensor, y: Tensor, a: Tensor) -> Tensor:
    """The same for the loss sigmoid(-y <b, A x>) in [0, 1], by accelerated ascent from the linear loss's best b.

    Steps are 1 / curvature, the second derivative of a sigmoid being at most 0.0963.
    """
    signed = y[:, None] * (x @ a.T)  # (N, r)
    step = 1 / (0.0963 * torch.linalg.matrix_norm(signed.T @ signed / len(y), ord=2))
    b = signed.mean(0)
    b = before = b / torch.linalg.vector_norm(b)
    for turn in range(ASCENT_STEPS):
        ahead = b + turn / (turn + 3) * (b - before)
        p = torch.sigmoid(signed @ ahead)
        moved = ahead + step * (p * (1 - p)) @ signed / len(y)
        before, b = b, moved / torch.linalg.vector_norm(moved).clamp(min=1.0)
    return torch.sigmoid(signed @ b).mean() - 0.5


def sphere(draw: torch.Generator, repetitions: int, samples: int, device: str) -> tuple[Tensor, Tensor]:
    """Inputs (repetitions, N, d) of norm sqrt(d), and fair labels +-1."""
    x = normal(draw, repetitions, samples, WIDTH, device=device)
    x = x * (math.sqrt(WIDTH) / torch.linalg.vector_norm(x, dim=-1, keepdim=True))
    y = torch.randint(0, 2, (repetitions, samples), generator=draw).to(x) * 2 - 1
    return x, y


def run(settings: Settings) -> Outcome:
    """See the module."""
    repetitions = settings.of(quick=192, full=960)
    in_rank, in_rank_scaled = _over_ranks(repetitions, settings)
    in_samples = _over_samples(repetitions, settings)
    runs = repetitions * (3 * len(RANKS) + 2 * len(SAMPLES))
    spreads, spread_findings = _spreads(settings)
    findings = [
        measured(
            "slope in r, A ~ N(0, 1/d)",
            log_log_slopes(RANKS, in_rank["linear"]),
            EXPECTED["slope in r"],
            "theory: 1/2",
        ),
        measured(
            "slope in N, A ~ N(0, 1/d)",
            log_log_slopes(SAMPLES, in_samples["linear"]),
            EXPECTED["slope in N"],
            "theory: -1/2",
        ),
        measured(
            "slope in r, A ~ N(0, 1/r)",
            log_log_slopes(RANKS, in_rank_scaled),
            EXPECTED["slope in r, A ~ N(0, 1/r)"],
            "theory: 0, the law of A hides sqrt r",
        ),
        measured(
            "slope in r, sigmoid loss, A ~ N(0, 1/d)",
            log_log_slopes(RANKS, in_rank["sigmoid"]),
            EXPECTED["slope in r"],
            "theory: 1/2",
        ),
        measured(
            "slope in N, sigmoid loss, A ~ N(0, 1/d)",
            log_log_slopes(SAMPLES, in_samples["sigmoid"]),
            EXPECTED["slope in N"],
            "theory: -1/2",
        ),
        *spread_findings,
        *_against_bounds(in_rank["sigmoid"], in_samples["sigmoid"], settings),
    ]
    draw = generator(settings.seed, 6)
    x, y = sphere(draw, GROUP, SAMPLE, settings.device)
    a = normal(draw, GROUP, RANK, WIDTH, device=settings.device) / math.sqrt(WIDTH)
    return Outcome(
        findings=findings,
        plots=[
            _plot("Largest gap against the rank", "rank r", RANKS, {**in_rank, "A ~ N(0, 1/r)": in_rank_scaled}, 0.5),
            _plot("Largest gap against the samples", "samples N", SAMPLES, in_samples, -0.5),
            Plot(
                "Spread over draws of A on one sample",
                "rank r",
                "standard deviation / mean",
                [
                    _curve("measured", list(spreads), list(spreads.values())),
                    Curve("1 / sqrt(2 r)", list(spreads), [1 / math.sqrt(2 * r) for r in spreads], theory=True),
                ],
                log_x=True,
                log_y=True,
            ),
        ],
        words=[
            f"Width {WIDTH}, {repetitions} independent repetitions (sample, labels, A) at every size, {runs:,} runs; "
            f"N = {SAMPLE} where r varies, r = {RANK} where N does. Slopes are fitted in each repetition alone.",
            "The rate is seen, not the constant: the upper bound is far above the measured gap, as bounds by covering "
            "numbers are. With A ~ N(0, 1/r) the rank has no effect on the gap: whether sqrt(r) shows is a matter of "
            "how A and alpha / r are scaled.",
        ],
        speedups=[speedup("sigmoid loss, ascent", largest_sigmoid_gap, x, y, a)],
    )


def _over_ranks(repetitions: int, settings: Settings) -> tuple[dict[str, list[list[float]]], list[list[float]]]:
    """Largest gaps with A ~ N(0, 1/d), by loss, and those of the linear loss with A ~ N(0, 1/r): a row a repetition,
    which has its own sample; A is drawn anew for every entry."""
    draw = generator(settings.seed, 1)
    found: dict[str, list[list[float]]] = {"linear": [], "sigmoid": [], "scaled": []}
    for _ in range(repetitions // GROUP):
        x, y = sphere(draw, GROUP, SAMPLE, settings.device)
        columns: dict[str, list[Tensor]] = {"linear": [], "sigmoid": [], "scaled": []}
        for rank in RANKS:
            a, other = normal(draw, 2 * GROUP, rank, WIDTH, device=settings.device).split(GROUP)
            a, other = a / math.sqrt(WIDTH), other / math.sqrt(rank)
            columns["linear"].append(batch(largest_linear_gap, x, y, a))
            columns["sigmoid"].append(batch(largest_sigmoid_gap, x, y, a))
            columns["scaled"].append(batch(largest_linear_gap, x, y, other))
        for name, parts in columns.items():
            found[name] += torch.stack(parts, 1).tolist()
    scaled = found.pop("scaled")
    return found, scaled


def _over_samples(repetitions: int, settings: Settings) -> dict[str, list[list[float]]]:
    """Largest gaps with A ~ N(0, 1/d), by loss: a row a repetition with an A of its own; samples are drawn
    for every entry."""
    draw = generator(settings.seed, 2)
    found: dict[str, list[list[float]]] = {"linear": [], "sigmoid": []}
    for _ in range(repetitions // GROUP):
        a = normal(draw, GROUP, RANK, WIDTH, device=settings.device) / math.sqrt(WIDTH)
        columns: dict[str, list[Tensor]] = {"linear": [], "sigmoid": []}
        for samples in SAMPLES:
            x, y = sphere(draw, GROUP, samples, settings.device)
            columns["linear"].append(batch(largest_linear_gap, x, y, a))
            columns["sigmoid"].append(batch(largest_sigmoid_gap, x, y, a))
        for name, parts in columns.items():
            found[name] += torch.stack(parts, 1).tolist()
    return found


def _spreads(settings: Settings) -> tuple[dict[int, list[float]], list[Finding]]:
    """Relative spread of the linear gap over draws of A, for every rank a value per sample; and the findings."""
    draws, samples = settings.of(quick=1000, full=4000), settings.of(quick=12, full=24)
    x, y = sphere(generator(settings.seed, 4), samples, SAMPLE, settings.device)
    spreads: dict[int, list[float]] = {}
    for place, rank in enumerate((4, 8, 16, 32, 64)):
        a = normal(generator(settings.seed, 5, place), draws, rank, WIDTH, device=settings.device) / math.sqrt(WIDTH)

        def over_draws(x: Tensor, y: Tensor, a: Tensor = a) -> Tensor:
            return torch.func.vmap(largest_linear_gap, in_dims=(None, None, 0))(x, y, a)

        gaps = batch(over_draws, x, y)  # (samples, draws)
        spreads[rank] = (gaps.std(1) / gaps.mean(1)).tolist()
    findings = [
        measured(
            f"spread over draws of A, times sqrt(2 r), r = {rank}",
            [value * math.sqrt(2 * rank) for value in values],
            EXPECTED["spread"],
            "theory: 1",
        )
        for rank, values in spreads.items()
    ]
    return spreads, findings


def _against_bounds(
    in_rank: Sequence[Sequence[float]], in_samples: Sequence[Sequence[float]], settings: Settings
) -> list[Finding]:
    """The measured gaps of the sigmoid loss beside both bounds of `tunewise.theory.random_factor`."""
    shares = []
    for rows, sizes, by_rank in ((in_rank, RANKS, True), (in_samples, SAMPLES, False)):
        for place, size in enumerate(sizes):
            rank, samples = (size, SAMPLE) if by_rank else (RANK, size)
            bound = random_factor_upper(
                0.0,
                [(1, WIDTH)],
                rank,
                alpha=rank,
                factor_std=1 / math.sqrt(WIDTH),
                update_radius=1.0,
                input_bound=math.sqrt(WIDTH),
                samples=samples,
                loss_lipschitz=0.25,
            )
            shares += [row[place] / float(bound) for row in rows]
    flips = settings.of(quick=2000, full=20000)
    signs = torch.randint(0, 2, (flips, SAMPLE), generator=generator(settings.seed, 7)).double() * 2 - 1
    hardest = (signs.mean(1).abs() / 2 / float(random_factor_lower(SAMPLE))).tolist()
    return [
        exactly(
            "largest gap over the upper bound, largest of all runs",
            max(shares),
            EXPECTED["share of the bound"],
            "the bound holds with probability 0.9; sigmoid loss",
        ),
        measured(
            "mean largest gap of the hardest problem over the lower bound",
            hardest,
            EXPECTED["lower"],
            "two settings with opposite losses; theory: at least 1, and 1.13 for large N",
        ),
    ]


def _plot(title: str, x: str, sizes: Sequence[int], rows: dict[str, list[list[float]]], slope: float) -> Plot:
    names = {"linear": "linear loss, A ~ N(0, 1/d)", "sigmoid": "sigmoid loss, A ~ N(0, 1/d)"}
    curves = [_curve(names.get(key, f"linear loss, {key}"), sizes, list(zip(*values))) for key, values in rows.items()]
    start = curves[0].y[0]
    theory = [start * (size / sizes[0]) ** slope for size in sizes]
    return Plot(
        title,
        x,
        "largest gap",
        [*curves, Curve(f"slope {slope:g}", sizes, theory, theory=True)],
        log_x=True,
        log_y=True,
        caption="Means over repetitions with 95 % intervals.",
    )


def _curve(name: str, x: Sequence[float], columns: Sequence[Sequence[float]]) -> Curve:
    mean, low, high = band(list(zip(*columns)))
    return Curve(name, list(x), mean, low, high)


EXPERIMENT = experiment("random-factor", run)
