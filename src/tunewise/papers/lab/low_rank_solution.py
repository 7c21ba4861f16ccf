r"""A minimiser of low rank exists: found, on problems that have others of high rank (arXiv 2402.11867).

Any minimiser W = P S Q^T (S diagonal, the singular values) is pushed to lower rank inside the set of minimisers:
S + t D stays symmetric and positive, keeps every <G_i, P S Q^T>, and does not raise tr S = ||W||_*, until it is
singular. A direction D != 0 is there as long as rank (rank + 1) / 2 > K N, says Pataki's lemma (1998); the code
does not use that count, it goes on for as long as it finds one. Random problems have one minimiser and nothing to
do; planted ones have a face of minimisers of ranks up to `FACE`, or one minimiser whose rank is the theorem's: it can't
be bettered.

The second witness knows nothing of this: LoRA's own descent at that rank, from many starts, must reach the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunewise.papers.lab.batched import batch, generator, normal, speedup
from tunewise.papers.lab.contract import Curve, Outcome, Plot, Settings, exactly
from tunewise.papers.lab.factored import settle, stacked
from tunewise.papers.lab.lazy_problem import Optimum, Problems, convex_value, fista, random_problems, solve
from tunewise.papers.lab.registry import experiment
from tunewise.theory import rank_for_existence

SIZE = 8  # m = n
FACE = 7  # rank of the planted minimiser
SIZES = ((1, 3), (1, 6), (2, 5), (3, 5))  # K and N, of which K N = r (r + 1) / 2
PENALTY = 0.2
ZERO = 1e-9  # of the largest singular value

EXPECTED: dict[str, tuple[float, float]] = {
    "gap": (0, 1e-8),
    "excess": (-math.inf, 1e-8),
    "descent": (-math.inf, 1e-6),
    "to do": (1, math.inf),
    "tight": (0, 0),
    "missed": (1e-6, math.inf),
}


def planted_problems(seed: int, count: int, outputs: int, samples: int, device: str = "cpu") -> tuple[Problems, Tensor]:
    """Problems with a minimiser U S V^T of rank `FACE`, and that minimiser (P, m, n).

    One feature is such that sum_i theta_i G_i = lam (U V^T + something smaller outside), theta the residual over N:
    the optimality condition, which then holds for every positive S with the same <G_i, U S V^T>.
    """
    draw = generator(seed, 21, outputs, samples)
    number = outputs * samples
    planted, subgradient, _, _ = _face(draw, count, FACE, device)
    features = normal(draw, count, number, SIZE, SIZE, device=device)
    theta = (0.5 + torch.rand(count, number, generator=draw, dtype=torch.float64)).to(features) / number
    theta[:, 0] = 1.0
    features[:, 0] = subgradient - torch.einsum("pi,pimn->pmn", theta[:, 1:], features[:, 1:])
    return _with_residual(features, theta, planted, outputs, samples), planted


def pinned_problems(seed: int, count: int, outputs: int, samples: int, device: str = "cpu") -> tuple[Problems, Tensor]:
    """Problems with one minimiser, U S V^T of rank r with r (r + 1) / 2 = K N, and that minimiser (P, m, n).

    Seen on the face, the features are an orthonormal basis of the symmetric matrices: they leave S no freedom.
    """
    draw = generator(seed, 23, outputs, samples)
    number, rank = outputs * samples, _triangle(outputs * samples)
    planted, subgradient, left, right = _face(draw, count, rank, device)
    basis = torch.linalg.qr(normal(draw, count, number, number, device=device))[0]
    rows, columns = torch.tril_indices(rank, rank)
    lower = torch.zeros(count, number, rank, rank).to(basis)
    lower[:, :, rows, columns] = torch.where(rows == columns, basis, basis / math.sqrt(2.0))
    inside = lower + lower.tril(-1).mT
    theta = inside.diagonal(dim1=2, dim2=3).sum(2)  # sum_i theta_i inside_i = I
    outside = subgradient - left @ right.mT
    share = theta / theta.square().sum(1, keepdim=True)
    features = left[:, None] @ inside @ right.mT[:, None] + share[:, :, None, None] * outside[:, None]
    return _with_residual(features, theta, planted, outputs, samples), planted


def _face(draw: torch.Generator, count: int, rank: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """U S V^T with S at least 0.2, a subgradient of the nuclear norm there, U and V."""
    left, right = (torch.linalg.qr(normal(draw, count, SIZE, SIZE, device=device))[0] for _ in range(2))
    root = normal(draw, count, rank, rank, device=device)
    positive = root @ root.mT / rank + 0.2 * torch.eye(rank).to(root)
    sizes = torch.cat([torch.ones(rank), torch.full((SIZE - rank,), 0.5)]).to(root)
    u, v = left[:, :, :rank], right[:, :, :rank]
    return u @ positive @ v.mT, (left * sizes) @ right.mT, u, v


def _with_residual(features: Tensor, theta: Tensor, planted: Tensor, outputs: int, samples: int) -> Problems:
    """lam = 1, and targets that leave the residual N theta at the planted W."""
    targets = torch.einsum("pimn,pmn->pi", features, planted) + samples * theta
    return Problems(features, targets, torch.ones(len(theta)).to(features), outputs, samples)


def lower_rank(weight: Tensor, features: Tensor) -> Tensor:
    """Another W (m, m) with the same <G_i, W>, no larger nuclear norm, and as low a rank as the pushing gets to."""
    left, sizes, right = torch.linalg.svd(weight)
    seen = left.T @ features @ right.T  # (K N, m, m)
    seen = (seen + seen.mT) / 2
    middle = torch.diag(sizes)
    rows, columns = torch.tril_indices(*middle.shape)
    factor = torch.where(rows == columns, 1.0, 2.0).to(weight).sqrt()  # keeps the inner product
    for _ in range(len(sizes)):
        values, vectors = torch.linalg.eigh(middle)
        used = values > ZERO * values[-1]
        root = vectors * torch.where(used, values, 0.0).clamp(min=0).sqrt()
        constraints = (root.T @ seen @ root)[:, rows, columns] * factor
        constraints = constraints / torch.linalg.vector_norm(constraints, dim=1, keepdim=True).clamp(min=1e-300)
        unused = torch.diag(torch.where(used[rows] & used[columns], 0.0, 1.0).to(weight))
        _, strength, directions = torch.linalg.svd(torch.cat([constraints, unused]), full_matrices=False)
        entries = directions[-1] / factor
        push = torch.zeros_like(middle).index_put((rows, columns), entries)
        push = push + push.tril(-1).T
        trace = (root @ push @ root.T).trace()
        push = torch.where(trace > 0, -push, push)
        lowest = torch.linalg.eigvalsh(push)[0]
        there = (strength[-1] < 1e-9) & (lowest < -1e-6)
        singular = root @ (torch.eye(len(sizes)).to(weight) - push / torch.where(there, lowest, -1.0)) @ root.T
        middle = torch.where(there, (singular + singular.T) / 2, root @ root.T)
    return left @ middle @ right


@dataclass(frozen=True)
class Seen:
    """What was found on the problems of one size K N; a list has an entry a problem."""

    numbers: int
    """K N"""
    bound: int
    """The largest r with r (r + 1) / 2 <= K N."""
    gap: float
    """Of FISTA, proved, over the value; the largest."""
    before: list[int]
    """Ranks of FISTA's minimisers of planted problems."""
    after: list[int]
    """Ranks of minimisers of random and planted problems once pushed."""
    excess: float
    """Of the pushed ones above FISTA's value, over it; the largest."""
    unique: list[int]
    """Ranks where there is one minimiser only, of rank `bound`; pushed too."""
    reached: list[list[float]]
    """Best start of LoRA's descent above FISTA's value, over it, on planted problems: a row a rank 1 .. bound."""
    missed: list[float]
    """The same at rank bound - 1 on problems with one minimiser."""

    @property
    def descended(self) -> int:
        """The lowest rank at which descent reaches the optimum of every planted problem; 0 for none."""
        reach = [rank for rank, row in enumerate(self.reached, 1) if max(row) <= EXPECTED["descent"][1]]
        return min(reach, default=0)


def run(settings: Settings) -> Outcome:
    """See the module."""
    seen = [look(outputs, samples, settings) for outputs, samples in SIZES]
    findings = [
        exactly(
            "largest proved distance of FISTA to the minimum, over the value",
            max(s.gap for s in seen),
            EXPECTED["gap"],
            "the judge must be right",
        ),
        exactly(
            "rank of FISTA's minimisers of planted problems less the theorem's, smallest",
            min(min(s.before) - s.bound for s in seen),
            EXPECTED["to do"],
            "a control: there must be something to lower",
        ),
        *(
            exactly(
                f"rank of the lowest minimiser found, K N = {s.numbers}, largest",
                max(s.after),
                (0, s.bound),
                f"of {len(s.after)} problems; r (r + 1) / 2 <= K N is r <= {s.bound}",
            )
            for s in seen
        ),
        exactly(
            "value of those minimisers above FISTA's, over it, largest",
            max(s.excess for s in seen),
            EXPECTED["excess"],
            "they are minimisers",
        ),
        exactly(
            "best start of LoRA's descent at that rank above the optimum, over it, largest",
            max(max(s.reached[-1]) for s in seen),
            EXPECTED["descent"],
            "found without the construction",
        ),
        exactly(
            "where one minimiser is all there is: its rank less the theorem's, largest distance",
            max(abs(rank - s.bound) for s in seen for rank in s.unique),
            EXPECTED["tight"],
            "K N = r (r + 1) / 2 numbers can pin a minimiser of rank r",
        ),
        exactly(
            "there, best start of LoRA's descent one rank lower above the optimum, over it, smallest",
            min(min(s.missed) for s in seen),
            EXPECTED["missed"],
            "one rank lower is not enough",
        ),
        *(
            exactly(
                f"lowest rank at which descent reaches the optimum of every planted problem, K N = {s.numbers}",
                s.descended,
                None,
                f"the theorem's rank is {s.bound}",
            )
            for s in seen
        ),
    ]
    numbers = [s.numbers for s in seen]
    problems, starts = _counts(settings)
    draw = random_problems(settings.seed, 16, 2, 5, SIZE, PENALTY, settings.device)
    return Outcome(
        findings=findings,
        plots=[
            Plot(
                "Ranks of minimisers",
                "numbers that the loss sees, K N",
                "rank",
                [
                    _ranks("planted, as FISTA finds it", numbers, [s.before for s in seen]),
                    _ranks("planted or random, pushed lower", numbers, [s.after for s in seen]),
                    _ranks("planted, lowest that descent reaches", numbers, [[s.descended] for s in seen]),
                    Curve("largest r with r (r + 1) / 2 <= K N", numbers, [s.bound for s in seen], theory=True),
                ],
                caption="Largest over problems; bars go down to the smallest.",
            )
        ],
        words=[
            f"m = n = {SIZE}; {problems} random, {problems} planted and {problems} problems with a single minimiser at "
            f"each of {len(SIZES)} sizes; {starts} starts of descent for each. FISTA starts from 0.",
            "The theorem says that a minimiser of this rank exists, neither that training finds it nor that it is the "
            "lowest: on most problems a lower one does.",
        ],
        speedups=[
            speedup("FISTA, 20 steps", _twenty_steps, torch.zeros_like(draw.features[:, 0]), *draw.tensors, looped=4)
        ],
    )


def look(outputs: int, samples: int, settings: Settings) -> Seen:
    """Solves, pushes and descends on random, planted and uniquely solvable problems of one size."""
    count, starts = _counts(settings)
    bound = int(rank_for_existence(outputs, samples))
    random = random_problems(settings.seed, count, outputs, samples, SIZE, PENALTY, settings.device)
    planted, _ = planted_problems(settings.seed, count, outputs, samples, settings.device)
    single, _ = pinned_problems(settings.seed, count, outputs, samples, settings.device)
    optima = [solve(problems) for problems in (random, planted, single)]
    lower = [batch(lower_rank, o.weight, p.features) for o, p in zip(optima, (random, planted, single))]
    excess = [
        float(((batch(convex_value, low, *p.tensors) - o.value) / o.value).max())
        for low, o, p in zip(lower, optima, (random, planted, single))
    ]
    ranks = [_rank(low) for low in lower]
    return Seen(
        numbers=outputs * samples,
        bound=bound,
        gap=max(float((o.gap / o.value).max()) for o in optima),
        before=optima[1].rank.tolist(),
        after=ranks[0] + ranks[1],
        excess=max(excess),
        unique=ranks[2],
        reached=best_starts(planted, optima[1], range(1, bound + 1), starts, settings),
        missed=best_starts(single, optima[2], [bound - 1], starts, settings)[0],
    )


def best_starts(
    problems: Problems, optimum: Optimum, ranks: Sequence[int], starts: int, settings: Settings
) -> list[list[float]]:
    """How far above the optimum the best of `starts` Gaussian starts of LoRA's descent ends, over the optimum: a row
    a rank, an entry a problem."""
    draw = generator(settings.seed, 22, problems.outputs, problems.samples)
    total = len(problems) * starts

    def drawn(rank: int) -> tuple[Tensor, Tensor]:
        u, v = (normal(draw, total, SIZE, rank, device=settings.device) for _ in range(2))
        return u, v

    u, v = stacked([drawn(rank) for rank in ranks])
    rows = torch.arange(total, device=u.device).repeat(len(ranks)) // starts
    ends = settle(u, v, [t[rows] for t in problems.tensors], tolerance=1e-6, blocks=25)
    value = ends.value.view(len(ranks), len(problems), starts).amin(2)
    found: list[list[float]] = ((value - optimum.value) / optimum.value).tolist()
    return found


def _counts(settings: Settings) -> tuple[int, int]:
    return settings.of(quick=12, full=64), settings.of(quick=8, full=48)


def _rank(weight: Tensor) -> list[int]:
    sizes = torch.linalg.svdvals(weight)
    found: list[int] = (sizes > 1e-8 * sizes[:, :1]).sum(1).tolist()
    return found


def _triangle(numbers: int) -> int:
    """r with r (r + 1) / 2 = numbers."""
    r = (math.isqrt(8 * numbers + 1) - 1) // 2
    if r * (r + 1) // 2 != numbers:
        raise ValueError(f"K N = {numbers} is not r (r + 1) / 2")
    return r


def _ranks(name: str, x: list[int], ranks: list[list[int]]) -> Curve:
    most = [max(row) for row in ranks]
    return Curve(name, x, most, [min(row) for row in ranks], most)


def _twenty_steps(start: Tensor, features: Tensor, targets: Tensor, penalty: Tensor, samples: Tensor) -> Tensor:
    return fista(start, features, targets, penalty, samples, 20)


EXPERIMENT = experiment("low-rank-solution", run)
