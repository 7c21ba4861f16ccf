r"""A minimizer of low rank exists, on problems that have others of high rank (arXiv 2402.11867).

Any minimizer W = P S Q^T (S diagonal, the singular values) is moved to lower rank inside the set of minimizers: S + t D
stays symmetric and positive, keeps every <G_i, P S Q^T> and does not raise tr S = ||W||_*, until it is singular. A
direction D != 0 exists as long as rank (rank + 1) / 2 > K N (Pataki's lemma, 1998); the code continues as long as it
finds a direction. Random problems have one minimizer. Planted problems have a face of minimizers of ranks up to `FACE`;
pinned problems have one minimizer, and its rank is the theorem's.

An independent check: LoRA's own descent at that rank, from many starts, must reach the optimum.
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
    convex_value,
    random_problems,
    settle,
    solve,
    stacked,
)
from tunewise.theory import rank_for_existence

SIZE = 8  # m = n
FACE = 7  # rank of the planted minimizer
SIZES = ((1, 3), (1, 6), (2, 5), (3, 5))  # K and N, with K N = r (r + 1) / 2
PENALTY = 0.2
ZERO = 1e-9  # of the largest singular value


def planted_problems(seed: int, count: int, outputs: int, samples: int) -> tuple[Problems, Tensor]:
    """Problems with a minimizer U S V^T of rank `FACE`, and that minimizer (P, m, n).

    One feature makes sum_i theta_i G_i = lam (U V^T + something smaller outside), theta the residual over N: the
    optimality condition, which then holds for every positive S with the same <G_i, U S V^T>.
    """
    draw = generator(seed, 21, outputs, samples)
    number = outputs * samples
    planted, subgradient, _, _ = _face(draw, count, FACE)
    features = normal(draw, count, number, SIZE, SIZE)
    theta = (0.5 + torch.rand(count, number, generator=draw, dtype=torch.float64)) / number
    theta[:, 0] = 1.0
    features[:, 0] = subgradient - torch.einsum("pi,pimn->pmn", theta[:, 1:], features[:, 1:])
    return _with_residual(features, theta, planted, outputs, samples), planted


def pinned_problems(seed: int, count: int, outputs: int, samples: int) -> tuple[Problems, Tensor]:
    """Problems with one minimizer, U S V^T of rank r with r (r + 1) / 2 = K N, and that minimizer (P, m, n).

    On the face, the features are an orthonormal basis of the symmetric matrices, which determines S.
    """
    draw = generator(seed, 23, outputs, samples)
    number, rank = outputs * samples, _triangle(outputs * samples)
    planted, subgradient, left, right = _face(draw, count, rank)
    basis = torch.linalg.qr(normal(draw, count, number, number))[0]
    rows, columns = torch.tril_indices(rank, rank)
    lower = torch.zeros(count, number, rank, rank).to(basis)
    lower[:, :, rows, columns] = torch.where(rows == columns, basis, basis / math.sqrt(2.0))
    inside = lower + lower.tril(-1).mT
    theta = inside.diagonal(dim1=2, dim2=3).sum(2)  # sum_i theta_i inside_i = I
    outside = subgradient - left @ right.mT
    share = theta / theta.square().sum(1, keepdim=True)
    features = left[:, None] @ inside @ right.mT[:, None] + share[:, :, None, None] * outside[:, None]
    return _with_residual(features, theta, planted, outputs, samples), planted


def _face(draw: torch.Generator, count: int, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """U S V^T with S at least 0.2, a subgradient of the nuclear norm there, U and V."""
    left, right = (torch.linalg.qr(normal(draw, count, SIZE, SIZE))[0] for _ in range(2))
    root = normal(draw, count, rank, rank)
    positive = root @ root.mT / rank + 0.2 * torch.eye(rank).to(root)
    sizes = torch.cat([torch.ones(rank), torch.full((SIZE - rank,), 0.5)]).to(root)
    u, v = left[:, :, :rank], right[:, :, :rank]
    return u @ positive @ v.mT, (left * sizes) @ right.mT, u, v


def _with_residual(features: Tensor, theta: Tensor, planted: Tensor, outputs: int, samples: int) -> Problems:
    """lam = 1, and targets that leave the residual N theta at the planted W."""
    targets = torch.einsum("pimn,pmn->pi", features, planted) + samples * theta
    return Problems(features, targets, torch.ones(len(theta)).to(features), outputs, samples)


def lower_rank(weight: Tensor, features: Tensor) -> Tensor:
    """Another W (m, m) with the same <G_i, W>, no larger nuclear norm, and the lowest rank of this construction."""
    left, sizes, right = torch.linalg.svd(weight)
    symmetric = left.T @ features @ right.T  # (K N, m, m)
    symmetric = (symmetric + symmetric.mT) / 2
    middle = torch.diag(sizes)
    rows, columns = torch.tril_indices(*middle.shape)
    factor = torch.where(rows == columns, 1.0, 2.0).to(weight).sqrt()  # keeps the inner product
    for _ in range(len(sizes)):
        values, vectors = torch.linalg.eigh(middle)
        used = values > ZERO * values[-1]
        root = vectors * torch.where(used, values, 0.0).clamp(min=0).sqrt()
        constraints = (root.T @ symmetric @ root)[:, rows, columns] * factor
        constraints = constraints / torch.linalg.vector_norm(constraints, dim=1, keepdim=True).clamp(min=1e-300)
        unused = torch.diag(torch.where(used[rows] & used[columns], 0.0, 1.0).to(weight))
        _, strength, directions = torch.linalg.svd(torch.cat([constraints, unused]), full_matrices=False)
        entries = directions[-1] / factor
        step = torch.zeros_like(middle).index_put((rows, columns), entries)
        step = step + step.tril(-1).T
        trace = (root @ step @ root.T).trace()
        step = torch.where(trace > 0, -step, step)
        lowest = torch.linalg.eigvalsh(step)[0]
        possible = (strength[-1] < 1e-9) & (lowest < -1e-6)
        singular = root @ (torch.eye(len(sizes)).to(weight) - step / torch.where(possible, lowest, -1.0)) @ root.T
        middle = torch.where(possible, (singular + singular.T) / 2, root @ root.T)
    return left @ middle @ right


@dataclass(frozen=True)
class SizeResult:
    """Results on the problems of one size K N; a list has an entry for each problem."""

    numbers: int  # K N
    bound: int  # the largest r with r (r + 1) / 2 <= K N
    gap: float  # of FISTA, proved, over the value; the largest
    before: list[int]  # ranks of FISTA's minimizers of planted problems
    after: list[int]  # ranks of minimizers of random and planted problems after `lower_rank`
    excess: float  # value after `lower_rank` above FISTA's value, over it; the largest
    unique: list[int]  # ranks of the minimizers of pinned problems after `lower_rank`
    reached: list[float]  # best descent above FISTA's value, over it, on planted problems
    missed: list[float]  # the same at rank bound - 1 on pinned problems


def run(settings: LabSettings) -> Measurement:
    results = [solve_size(outputs, samples, settings) for outputs, samples in SIZES]
    numbers = [s.numbers for s in results]
    problems, starts = _counts(settings)
    plot = Plot(
        "Ranks of minimizers",
        "numbers in the loss, K N",
        "rank",
        [
            _ranks("planted, from FISTA", numbers, [s.before for s in results]),
            _ranks("planted or random, after lowering", numbers, [s.after for s in results]),
            PlotCurve.theory("largest r with r (r + 1) / 2 <= K N", numbers, [s.bound for s in results]),
        ],
        caption="Largest over problems; bars go down to the smallest.",
    )
    return Measurement(
        _findings(results),
        [plot],
        [
            f"m = n = {SIZE}; {problems} random, {problems} planted and {problems} problems with a single minimizer at "
            f"each of {len(SIZES)} sizes; {starts} starts of descent for each. FISTA starts from 0.",
            "The theorem says that a minimizer of this rank exists. It does not say that training finds it, nor that "
            "it is the lowest: most problems have a minimizer of lower rank.",
        ],
    )


def _findings(results: Sequence[SizeResult]) -> list[Finding]:
    gap, lowest = max(s.gap for s in results), min(min(s.before) - s.bound for s in results)
    distance = max(abs(rank - s.bound) for s in results for rank in s.unique)
    below, descent = (-math.inf, 1e-8), "best start of LoRA's descent above the optimum, over it"
    return [
        Finding.exact("largest proved distance of FISTA to the minimum, over the value", gap, (0, 1e-8)),
        Finding.exact(
            "least rank of FISTA's planted minimizers less the theorem's", lowest, (1, math.inf), "a control"
        ),
        *(
            Finding.exact(f"rank of the lowest minimizer found, K N = {s.numbers}, largest", max(s.after), (0, s.bound))
            for s in results
        ),
        Finding.exact("value of those minimizers above FISTA's, largest", max(s.excess for s in results), below),
        Finding.exact(
            f"{descent}, at the theorem's rank, largest", max(max(s.reached) for s in results), (-math.inf, 1e-6)
        ),
        Finding.exact("rank of a single minimizer less the theorem's, largest distance", distance, (0, 0)),
        Finding.exact(
            f"{descent}, one rank below a single minimizer, smallest",
            min(min(s.missed) for s in results),
            (1e-6, math.inf),
        ),
    ]


def solve_size(outputs: int, samples: int, settings: LabSettings) -> SizeResult:
    """Solves, lowers ranks and descends on random, planted and pinned problems of one size."""
    count, starts = _counts(settings)
    bound = int(rank_for_existence(outputs, samples))
    planted, _ = planted_problems(settings.seed, count, outputs, samples)
    pinned, _ = pinned_problems(settings.seed, count, outputs, samples)
    kinds = (random_problems(settings.seed, count, outputs, samples, SIZE, PENALTY), planted, pinned)
    optima = [solve(problems) for problems in kinds]
    lowered = [batch(lower_rank, o.weight, p.features) for o, p in zip(optima, kinds)]
    values = [batch(convex_value, low, *p.tensors) for low, p in zip(lowered, kinds)]
    ranks = [_rank(low) for low in lowered]
    return SizeResult(
        numbers=outputs * samples,
        bound=bound,
        gap=max(float((o.gap / o.value).max()) for o in optima),
        before=optima[1].rank.tolist(),
        after=ranks[0] + ranks[1],
        excess=max(float(((value - o.value) / o.value).max()) for value, o in zip(values, optima)),
        unique=ranks[2],
        reached=best_starts(planted, optima[1], range(1, bound + 1), starts, settings)[-1],
        missed=best_starts(pinned, optima[2], [bound - 1], starts, settings)[0],
    )


def best_starts(
    problems: Problems, optimum: Optimum, ranks: Sequence[int], starts: int, settings: LabSettings
) -> list[list[float]]:
    """How far above the optimum the best of `starts` Gaussian starts of LoRA's descent ends, over the optimum: a row
    for each rank, an entry for each problem."""
    draw = generator(settings.seed, 22, problems.outputs, problems.samples)
    total = len(problems) * starts
    u, v = stacked([(normal(draw, total, SIZE, rank), normal(draw, total, SIZE, rank)) for rank in ranks])
    rows = torch.arange(total).repeat(len(ranks)) // starts
    ends = settle(u, v, [t[rows] for t in problems.tensors], tolerance=1e-6, blocks=25)
    value = ends.value.view(len(ranks), len(problems), starts).amin(2)
    above: list[list[float]] = ((value - optimum.value) / optimum.value).tolist()
    return above


def _counts(settings: LabSettings) -> tuple[int, int]:
    return settings.choose(quick=12, full=64), settings.choose(quick=8, full=48)


def _rank(weight: Tensor) -> list[int]:
    sizes = torch.linalg.svdvals(weight)
    ranks: list[int] = (sizes > 1e-8 * sizes[:, :1]).sum(1).tolist()
    return ranks


def _triangle(numbers: int) -> int:
    """r with r (r + 1) / 2 = numbers."""
    r = (math.isqrt(8 * numbers + 1) - 1) // 2
    if r * (r + 1) // 2 != numbers:
        raise ValueError(f"K N = {numbers} is not r (r + 1) / 2")
    return r


def _ranks(name: str, x: list[int], ranks: list[list[int]]) -> PlotCurve:
    largest = [max(row) for row in ranks]
    return PlotCurve(name, x, largest, [min(row) for row in ranks], largest)
