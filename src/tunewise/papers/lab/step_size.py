r"""The rate at which a step of SGD on selected columns first raises the loss (arXiv 2606.13767, Theorems 2 and 3).

The map is linear, y = W x, with W = W0 + (alpha / r) B A, A the one-hot rows of cla, and only B is trained. L, the
Lipschitz constant of the loss's gradient in W, is known exactly, Sigma = X^T X / N:

    aligned    squared error; Sigma is L I on the selected columns, so every direction is the theorem's worst one
    random     squared error, Gaussian X; L = lambda_max(Sigma)
    logistic   softmax cross-entropy; L = lambda_max(Sigma) / 2, since ||diag(p) - p p^T|| <= 1/2

The loss along a step is convex in the rate, so bisection finds the first rate that raises it. Steps are taken in
batches through B by autograd.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tunewise.papers.lab.batched import batch, generator, normal
from tunewise.papers.lab.contract import Finding, LabSettings, Measurement, Plot, PlotCurve
from tunewise.theory import guaranteed_decrease, largest_safe_step

INPUTS, OUTPUTS, SAMPLES = 16, 6, 40  # m, n, N
RANKS = (1, 2, 4, 8)
FAMILIES = ("aligned", "random", "logistic")
BELOW = (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999)  # rates over the bound
ABOVE = (1.0001, 1.01, 1.1, 1.5, 2.0, 4.0)
BISECTIONS = 60
ROUNDING = 1e-9


@dataclass(frozen=True)
class Problems:
    """P problems of one rank and family, with the selected columns first. float64."""

    family: str
    rank: int
    x: Tensor  # (P, N, m)
    y: Tensor  # (P, N, n): targets, or one-hot classes
    weight: Tensor  # W0: (P, n, m)
    b: Tensor  # B before the step: (P, n, r)
    alpha: Tensor  # (P,)
    lipschitz: Tensor  # L: (P,)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.x, self.y, self.weight, self.b, self.alpha

    @property
    def bound(self) -> Tensor:
        """2 r^2 / (L alpha^2) of every problem: (P,)."""
        pairs = zip(self.alpha.tolist(), self.lipschitz.tolist())
        return torch.tensor([float(largest_safe_step(self.rank, a, c)) for a, c in pairs], dtype=torch.float64)


def make(family: str, rank: int, count: int, settings: LabSettings) -> Problems:
    """Random problems: alpha from r / 2 to 4 r, the scale of X over two decades, B = 0 in every second problem."""
    draw = generator(settings.seed, 31, FAMILIES.index(family), rank)

    def uniform() -> Tensor:
        return torch.rand(count, generator=draw, dtype=torch.float64)

    x = normal(draw, count, SAMPLES, INPUTS)
    if family == "aligned":  # Sigma = I on the selected columns, less than half of it elsewhere, nothing between
        x = torch.linalg.qr(x)[0] * math.sqrt(SAMPLES)
        x = torch.cat([x[:, :, :rank], 0.7 * x[:, :, rank:]], 2)
    x = x * 10 ** (uniform() - 0.5)[:, None, None]
    y = normal(draw, count, SAMPLES, OUTPUTS)
    curvature = torch.linalg.matrix_norm(x, ord=2).square() / SAMPLES
    if family == "logistic":
        y, curvature = one_hot(y.argmax(2), OUTPUTS).to(x), curvature / 2
    started = (torch.arange(count) % 2).to(x)[:, None, None]
    alpha = rank * 2 ** (3 * uniform() - 1)
    weight = normal(draw, count, OUTPUTS, INPUTS) / 4
    return Problems(family, rank, x, y, weight, started * normal(draw, count, OUTPUTS, rank) / 4, alpha, curvature)


def loss(family: str, b: Tensor, x: Tensor, y: Tensor, weight: Tensor, alpha: Tensor) -> Tensor:
    """Mean loss of one problem; A selects the first r columns."""
    rank = b.shape[1]
    select = torch.eye(rank, weight.shape[1], dtype=x.dtype)  # A (r, m)
    out = x @ (weight + alpha / rank * b @ select).T
    if family == "logistic":
        return -(y * torch.log_softmax(out, 1)).sum(1).mean()
    return (out - y).square().sum(1).mean() / 2


def change(family: str, rate: Tensor, x: Tensor, y: Tensor, weight: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    """Loss after one step of SGD on B at this rate, less the loss before, of one problem."""
    slope, before = torch.func.grad_and_value(lambda b: loss(family, b, x, y, weight, alpha))(b)
    return loss(family, b - rate * slope, x, y, weight, alpha) - before


def first_rise(family: str, least: Tensor, *problem: Tensor) -> Tensor:
    """The rate at which one problem's loss change crosses 0, searched from `least` to 2^40 times that."""
    low, high = torch.log(least), torch.log(least) + 40 * math.log(2.0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        risen = change(family, torch.exp(middle), *problem) > 0
        low, high = torch.where(risen, low, middle), torch.where(risen, middle, high)
    return torch.exp((low + high) / 2)


def run(settings: LabSettings) -> Measurement:
    count = settings.choose(quick=24, full=200)
    multiples = torch.tensor([*BELOW, *ABOVE], dtype=torch.float64)
    below, above = 0, 0
    spare: list[float] = []
    rises: dict[str, list[float]] = {f: [] for f in FAMILIES}
    shown: dict[str, list[Tensor]] = {f: [] for f in FAMILIES}
    for family in FAMILIES:
        for rank in RANKS:
            problems = make(family, rank, count, settings)
            bound = problems.bound
            changes = _changes(problems, multiples[None] * bound[:, None])  # (P, rates)
            below += int((changes[:, : len(BELOW)] > 0).sum())
            if family == "aligned":
                above += int((changes[:, len(BELOW) :] <= 0).sum())
            rise = batch(partial(first_rise, family), bound / 8, *problems.tensors)
            rises[family] += (rise / bound).tolist()
            before = batch(lambda x, y, w, b, a, f=family: loss(f, b, x, y, w, a), *problems.tensors)
            spare += _over_guarantee(problems, changes[:, : len(BELOW)], bound, before)
            shown[family].append(changes / before[:, None])
    what, least, note = "first rate that raises the loss over the bound", (1 - ROUNDING, math.inf), "theory: at least 1"
    farthest = max(rises["aligned"], key=lambda rise: abs(math.log(rise)))
    return Measurement(
        [
            Finding.exact("steps below the bound that raised the loss", below, (0, 0)),
            Finding.exact("steps above the bound that lowered the loss, aligned problems", above, (0, 0)),
            Finding.exact(f"{what}, aligned, farthest from 1", farthest, (1 - 1e-6, 1 + 1e-6), "theory: 1"),
            Finding.exact(f"{what}, random, smallest", min(rises["random"]), least, note),
            Finding.exact(f"{what}, logistic, smallest", min(rises["logistic"]), least, note),
            Finding.exact(
                "decrease less the guaranteed decrease, over the loss, smallest", min(spare), (-1e-12, math.inf)
            ),
        ],
        [_rates_plot(shown)],
        [
            f"m = {INPUTS}, n = {OUTPUTS}, N = {SAMPLES}, ranks {', '.join(map(str, RANKS))}, {count} problems of each "
            f"family and rank, alpha from r / 2 to 4 r, rates from {BELOW[0]:g} to {ABOVE[-1]:g} of the bound. The "
            "links of a chain take the same steps on other columns.",
            "The bound is exact in the worst case and too careful on most problems: longer steps often lower the loss "
            "too. It holds for plain SGD on the full loss, not for Adam, momentum or small batches.",
        ],
    )


def _changes(problems: Problems, rates: Tensor) -> Tensor:
    """Loss changes (P, rates)."""

    def all_rates(rates: Tensor, *problem: Tensor) -> Tensor:
        return torch.func.vmap(lambda rate: change(problems.family, rate, *problem))(rates)

    changes: Tensor = batch(all_rates, rates, *problems.tensors)
    return changes


def _over_guarantee(problems: Problems, changes: Tensor, bound: Tensor, before: Tensor) -> list[float]:
    """(-change - `guaranteed_decrease`) / loss of every step below the bound."""

    def selected(x: Tensor, y: Tensor, weight: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
        """||grad_W A^T A||_F = r / alpha ||grad_B||_F."""
        slope = torch.func.grad(lambda b: loss(problems.family, b, x, y, weight, alpha))(b)
        return torch.linalg.vector_norm(slope) * problems.rank / alpha

    norms = batch(selected, *problems.tensors)
    spare = []
    rows = (changes, bound, problems.alpha, problems.lipschitz, norms, before)
    for row, most, alpha, lipschitz, norm, value in zip(*(t.tolist() for t in rows)):
        for multiple, moved in zip(BELOW, row):
            least = guaranteed_decrease(multiple * most, problems.rank, alpha, lipschitz, norm)
            spare.append((-moved - float(least)) / value)
    return spare


def _rates_plot(shown: dict[str, list[Tensor]]) -> Plot:
    rates = [rate for rate in (*BELOW, *ABOVE) if rate <= 2]
    curves = [PlotCurve.mean(name, rates, torch.cat(parts)[:, : len(rates)].tolist()) for name, parts in shown.items()]
    return Plot(
        "One step",
        "learning rate over the bound",
        "change of the loss over the loss",
        [*curves, PlotCurve.theory("no change", [rates[0], rates[-1]], [0.0, 0.0])],
        thresholds=[("2 r² / (L α²)", 1.0)],
        caption="Means over problems of all ranks with 95 % intervals.",
    )
