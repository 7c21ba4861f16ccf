r"""With the preconditioner, steps do not depend on the condition number (2502.01235, Algorithm 1).

Gradient descent on the linear model from the spectral start, until ||B A - D||_F <= TOLERANCE ||D||_F, with
kappa = sigma_1 / sigma_r* of the target D:

    plain            A <- A - eta / sigma_1(G) grad_A,           B alike
    preconditioned   A <- A - eta (B^T B + eps I)^-1 grad_A,     B <- B - eta grad_B (A A^T + eps I)^-1

Near D, where A A^T and B^T B have D's singular values on the diagonal, the slowest part of the error shrinks by
1 - eta / kappa a step without the preconditioner and by 1 - eta with it: steps are in proportion to kappa, or the same
for all kappa. Both use one rate eta, in units in which the two steps are equal at kappa = 1.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from tunewise.papers.lab.batched import batch, generator, normal
from tunewise.papers.lab.contract import Finding, LabSettings, Measurement, Plot, PlotCurve, log_log_slopes
from tunewise.papers.lab.linear_model import low_rank, moment
from tunewise.papers.lab.spectral_start import start

OUTPUTS, INPUTS, RANK, SAMPLES = 24, 32, 3, 3200
CONDITIONS = (2.0, 5.0, 10.0, 20.0, 50.0)
RATE = 0.5
EPS = 1e-6
TOLERANCE = 1e-7
STEPS = {True: 80, False: 1600}  # with the preconditioner and without; the slowest plain run needs about 1100
NAMES = {True: "preconditioned", False: "plain"}
FLAT, PROPORTIONAL = 0.0, 1.0  # exponents of kappa in the number of steps

Counts = dict[bool, list[list[float]]]
"""Steps to TOLERANCE: a row for each draw, a column for each condition number."""


def errors(target: Tensor, second: Tensor, *, preconditioned: bool, steps: int) -> Tensor:
    """||B A - D||_F / ||D||_F before each of `steps` steps from the spectral start; D (n, m) of rank RANK, M (m, m)."""
    gradient = target @ second
    a, b = start(gradient, RANK)
    rate = RATE if preconditioned else RATE / torch.linalg.matrix_norm(gradient, 2)
    damping = EPS * torch.eye(RANK, dtype=target.dtype)
    path = []
    for _ in range(steps):
        path.append(torch.linalg.norm(b @ a - target) / torch.linalg.norm(target))
        slope = (b @ a - target) @ second
        grad_a, grad_b = b.mT @ slope, slope @ a.mT
        if preconditioned:
            grad_a, grad_b = (
                torch.linalg.solve(b.mT @ b + damping, grad_a),
                torch.linalg.solve(a @ a.mT + damping, grad_b.mT).mT,
            )
        a, b = a - rate * grad_a, b - rate * grad_b
    return torch.stack(path)


def steps_to(path: Tensor, tolerance: float) -> Tensor:
    """Number of steps before the error is at most `tolerance`, NaN where it never is. `path` is (..., steps)."""
    below = path <= tolerance
    return torch.where(below.any(-1), below.double().argmax(-1).double(), torch.nan)


def problems(settings: LabSettings, condition: float, draws: int) -> tuple[Tensor, Tensor]:
    """D (draws, n, m) and M (draws, m, m); singular spaces and inputs are the same for every condition number."""
    targets, moments = [], []
    for i in range(draws):
        draw = generator(settings.seed, i)
        targets.append(low_rank(draw, OUTPUTS, INPUTS, RANK, condition))
        moments.append(moment(normal(draw, SAMPLES, INPUTS)))
    return torch.stack(targets), torch.stack(moments)


def run(settings: LabSettings) -> Measurement:
    draws = settings.choose(6, 40)
    drawn = [problems(settings, condition, draws) for condition in CONDITIONS]
    targets, moments = (torch.cat(parts) for parts in zip(*drawn))
    counts: Counts = {}
    for kind in (True, False):
        path = batch(partial(errors, preconditioned=kind, steps=STEPS[kind]), targets, moments)
        counts[kind] = steps_to(path.unflatten(0, (len(CONDITIONS), draws)), TOLERANCE).T.tolist()
    what, slopes = (
        "exponent of the condition number in the steps",
        {k: log_log_slopes(CONDITIONS, counts[k]) for k in NAMES},
    )
    return Measurement(
        [
            Finding.mean(f"{what}, preconditioned", slopes[True], (FLAT - 0.05, FLAT + 0.05), "theory: 0"),
            Finding.mean(
                f"{what}, plain",
                slopes[False],
                (PROPORTIONAL - 0.1, PROPORTIONAL + 0.1),
                "theory: 1; slightly less because the slowest part of the error starts smaller, by 1 / kappa",
            ),
        ],
        [_plot(counts)],
        [
            f"Linear model, {OUTPUTS} x {INPUTS}, target and adapter of rank {RANK}, {SAMPLES} Gaussian samples, "
            f"{draws} problems, eta = {RATE:g}, eps = {EPS:g}, float64.",
            "Gradient descent, as in the theorem. Training with this package applies AdamW after the preconditioner, "
            "which rescales every entry again: the theorem does not cover that.",
        ],
    )


def _plot(counts: Counts) -> Plot:
    curves = []
    for kind, name in NAMES.items():
        # the condition numbers at which every run reached the target
        columns = {c: column for c, column in zip(CONDITIONS, zip(*counts[kind])) if not any(map(math.isnan, column))}
        if columns:
            power, x = FLAT if kind else PROPORTIONAL, list(columns)
            measured = PlotCurve.mean(name, x, list(zip(*columns.values())))
            line = [measured.y[0] * (condition / x[0]) ** power for condition in x]
            curves += [measured, PlotCurve.theory(f"theory, exponent {power:g}", x, line)]
    return Plot("Steps to the target", "condition number", "steps", curves, log="xy")
