r"""The gap of one run with a random frozen factor, of order sqrt(r / N) (arXiv 2506.14530).

Labels y = +-1 are random and inputs x uniform on the sphere of radius sqrt(d). The network is f(x) = <b, A x> with
A (r, d) drawn once and frozen, ||b||_2 <= 1. Labels do not depend on x, so no b predicts new labels better than chance
and the gap of b needs no test set. Its largest value over b is the worst that one run can do:

    loss -y f              sup gap = ||A mean(y x)||_2                           (closed form)
    loss sigmoid(-y f)     sup gap = max_b mean sigmoid(y f) - 1/2               (gradient ascent)

With A ~ N(0, s^2) and z = mean(y x), ||z|| about sqrt(d / N): E ||A z|| = s sqrt(r) (1 - 1 / (4 r) + ..) ||z||. The
slopes are 1/2 in r and -1/2 in N with s^2 = 1/d; with s^2 = 1/r the slope in r is 0. The relative spread over A is that
of a chi variable of r degrees of freedom, 1 / sqrt(2 r) (1 + ..).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from tunewise.papers.lab.batched import batch, generator, normal
from tunewise.papers.lab.contract import Finding, LabSettings, Measurement, Plot, PlotCurve, log_log_slopes
from tunewise.theory import random_factor_lower, random_factor_upper

WIDTH = 128  # d
RANKS = (8, 16, 32, 64, 128)
RANK = 16  # where N varies
SAMPLES = (64, 128, 256, 512, 1024)
SAMPLE = 512  # where r varies
SPREAD_RANKS = (4, 8, 16, 32, 64)
ASCENT_STEPS = 40
GROUP = 48  # repetitions in memory at a time

# Tolerances: 0.05 in a slope, where E log ||A z|| = log(r) / 2 - 1 / (2 r) takes 0.02; 10 % in the spread, where the
# chi variable takes 3 % at r = 4.
HALF, MINUS_HALF, FLAT = (0.45, 0.55), (-0.55, -0.45), (-0.05, 0.05)

Rows = list[list[float]]
"""Largest gaps: a row for each repetition, a column for each size."""


def largest_linear_gap(x: Tensor, y: Tensor, a: Tensor) -> Tensor:
    """sup over ||b|| <= 1 of the gap of the loss -y <b, A x>. x (N, d), y (N), a (r, d)."""
    return torch.linalg.vector_norm(a @ (y @ x / len(y)))


def largest_sigmoid_gap(x: Tensor, y: Tensor, a: Tensor) -> Tensor:
    """The same for the loss sigmoid(-y <b, A x>) in [0, 1], by accelerated ascent from the linear loss's best b.

    Steps are 1 / curvature: the second derivative of a sigmoid is at most 0.0963.
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


def sphere(draw: torch.Generator, repetitions: int, samples: int) -> tuple[Tensor, Tensor]:
    """Inputs (repetitions, N, d) of norm sqrt(d), and fair labels +-1."""
    x = normal(draw, repetitions, samples, WIDTH)
    x = x * (math.sqrt(WIDTH) / torch.linalg.vector_norm(x, dim=-1, keepdim=True))
    y = torch.randint(0, 2, (repetitions, samples), generator=draw).to(x) * 2 - 1
    return x, y


def run(settings: LabSettings) -> Measurement:
    repetitions = settings.choose(quick=192, full=960)
    in_rank, in_samples = _over_ranks(repetitions, settings), _over_samples(repetitions, settings)
    spreads = _spreads(settings)
    one, two, three = "theory: 1/2", "theory: -1/2", "theory: 0, this scale of A hides sqrt(r)"
    findings = [
        Finding.mean("slope in r, A ~ N(0, 1/d)", log_log_slopes(RANKS, in_rank["linear"]), HALF, one),
        Finding.mean("slope in N, A ~ N(0, 1/d)", log_log_slopes(SAMPLES, in_samples["linear"]), MINUS_HALF, two),
        Finding.mean("slope in r, A ~ N(0, 1/r)", log_log_slopes(RANKS, in_rank["scaled"]), FLAT, three),
        Finding.mean("slope in r, sigmoid loss, A ~ N(0, 1/d)", log_log_slopes(RANKS, in_rank["sigmoid"]), HALF, one),
        Finding.mean(
            "slope in N, sigmoid loss, A ~ N(0, 1/d)", log_log_slopes(SAMPLES, in_samples["sigmoid"]), MINUS_HALF, two
        ),
        *(
            Finding.mean(
                f"spread over draws of A, times sqrt(2 r), r = {rank}",
                [value * math.sqrt(2 * rank) for value in values],
                (0.9, 1.1),
                "theory: 1",
            )
            for rank, values in spreads.items()
        ),
        _below_upper_bound(in_rank["sigmoid"], in_samples["sigmoid"]),
        _above_lower_bound(settings),
    ]
    chi = PlotCurve.theory("1 / sqrt(2 r)", SPREAD_RANKS, [1 / math.sqrt(2 * r) for r in SPREAD_RANKS])
    spread = PlotCurve.mean("measured", SPREAD_RANKS, list(zip(*spreads.values())))
    runs = repetitions * (3 * len(RANKS) + 2 * len(SAMPLES))
    return Measurement(
        findings,
        [
            _plot("Largest gap against the rank", "rank r", RANKS, in_rank, 0.5),
            _plot("Largest gap against the samples", "samples N", SAMPLES, in_samples, -0.5),
            Plot(
                "Spread over draws of A on one sample", "rank r", "standard deviation / mean", [spread, chi], log="xy"
            ),
        ],
        [
            f"Width {WIDTH}, {repetitions} independent repetitions (sample, labels, A) at every size, {runs:,} runs; "
            f"N = {SAMPLE} where r varies, r = {RANK} where N does. Slopes are fitted in each repetition alone.",
            "The experiment shows the rate, not the constant: the upper bound is far above the measured gap, as bounds "
            "by covering numbers are. With A ~ N(0, 1/r) the rank has no effect on the gap: whether sqrt(r) is visible "
            "depends on the scaling of A and alpha / r.",
        ],
    )


def _collect(groups: Iterable[Sequence[dict[str, Tensor]]]) -> dict[str, Rows]:
    """Rows by name, from groups of repetitions with one dict for each size."""
    rows: dict[str, Rows] = defaultdict(list)
    for sizes in groups:
        for name in sizes[0]:
            rows[name] += torch.stack([size[name] for size in sizes], 1).tolist()
    return dict(rows)


def _over_ranks(repetitions: int, settings: LabSettings) -> dict[str, Rows]:
    """Largest gaps with A ~ N(0, 1/d) by loss, and of the linear loss with A ~ N(0, 1/r) ("scaled")."""
    draw = generator(settings.seed, 1)

    def group() -> Iterator[dict[str, Tensor]]:
        x, y = sphere(draw, GROUP, SAMPLE)
        for rank in RANKS:
            a, other = normal(draw, 2 * GROUP, rank, WIDTH).split(GROUP)
            a, other = a / math.sqrt(WIDTH), other / math.sqrt(rank)
            yield {
                "linear": batch(largest_linear_gap, x, y, a),
                "sigmoid": batch(largest_sigmoid_gap, x, y, a),
                "scaled": batch(largest_linear_gap, x, y, other),
            }

    return _collect(list(group()) for _ in range(repetitions // GROUP))


def _over_samples(repetitions: int, settings: LabSettings) -> dict[str, Rows]:
    """Largest gaps with A ~ N(0, 1/d), by loss."""
    draw = generator(settings.seed, 2)

    def group() -> Iterator[dict[str, Tensor]]:
        a = normal(draw, GROUP, RANK, WIDTH) / math.sqrt(WIDTH)
        for samples in SAMPLES:
            x, y = sphere(draw, GROUP, samples)
            yield {"linear": batch(largest_linear_gap, x, y, a), "sigmoid": batch(largest_sigmoid_gap, x, y, a)}

    return _collect(list(group()) for _ in range(repetitions // GROUP))


def _spreads(settings: LabSettings) -> dict[int, list[float]]:
    """Relative spread of the linear gap over draws of A, by rank: a value for each sample."""
    draws, samples = settings.choose(quick=1000, full=4000), settings.choose(quick=12, full=24)
    x, y = sphere(generator(settings.seed, 4), samples, SAMPLE)
    spreads = {}
    for place, rank in enumerate(SPREAD_RANKS):
        a = normal(generator(settings.seed, 5, place), draws, rank, WIDTH) / math.sqrt(WIDTH)
        over_draws = torch.func.vmap(largest_linear_gap, in_dims=(None, None, 0))
        gaps = batch(lambda x, y, a=a, over_draws=over_draws: over_draws(x, y, a), x, y)  # (samples, draws)
        spreads[rank] = (gaps.std(1) / gaps.mean(1)).tolist()
    return spreads


def _below_upper_bound(in_rank: Rows, in_samples: Rows) -> Finding:
    sizes = [(rank, SAMPLE) for rank in RANKS] + [(RANK, samples) for samples in SAMPLES]
    shares = []
    for (rank, samples), gaps in zip(sizes, [*zip(*in_rank), *zip(*in_samples)], strict=True):
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
        shares += [gap / float(bound) for gap in gaps]
    note = "the bound holds with probability 0.9; sigmoid loss"
    return Finding.exact("largest gap over the upper bound, largest of all runs", max(shares), (0.0, 1.0), note)


def _above_lower_bound(settings: LabSettings) -> Finding:
    flips = settings.choose(quick=2000, full=20000)
    signs = torch.randint(0, 2, (flips, SAMPLE), generator=generator(settings.seed, 7)).double() * 2 - 1
    return Finding.mean(
        "mean largest gap of the hardest problem over the lower bound",
        (signs.mean(1).abs() / 2 / float(random_factor_lower(SAMPLE))).tolist(),
        (1.0, math.inf),
        "two settings with opposite losses; theory: at least 1, and 1.13 for large N",
    )


def _plot(title: str, x: str, sizes: Sequence[int], rows: dict[str, Rows], slope: float) -> Plot:
    names = {
        "linear": "linear loss, A ~ N(0, 1/d)",
        "sigmoid": "sigmoid loss, A ~ N(0, 1/d)",
        "scaled": "linear loss, A ~ N(0, 1/r)",
    }
    curves = [PlotCurve.mean(names[key], sizes, values) for key, values in rows.items()]
    power = [curves[0].y[0] * (size / sizes[0]) ** slope for size in sizes]
    curves.append(PlotCurve.theory(f"slope {slope:g}", sizes, power))
    return Plot(title, x, "largest gap", curves, log="xy", caption="Means over repetitions with 95 % intervals.")
