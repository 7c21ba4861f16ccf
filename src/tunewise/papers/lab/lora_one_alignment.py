r"""Gradient descent on LoRA aligns with the one-step full gradient (2502.01235, Theorems 3.1 and 3.2).

From A0 ~ N(0, a^2), B0 = 0 on the linear model, with G = D M of rank r* and the step eta = RATE / sigma_1(G):

- the column space of B_t lies in the top-r* left singular space U of G for every t (the paper's right space);
- the top-r* row space of A_t comes within theta of the right singular space V of G (the paper's left space), for any
  theta if a is small enough.

How small [derived]: while B A is small against D, (A, B) grow like e^{g_i t}, g_i = log(1 + eta sigma_i), along G's
singular directions, and the part of A outside V keeps its size, so the angle falls like e^{-g_r* t}. The term B^T B A M
ends this: it turns the largest direction out of V by (a e^{g_1 t})^2, since M does not preserve V. The two are equal at
e^{(2 g_1 + g_r*) t} = a^-2, where the angle is a^{2 / (2 kappa + 1)}, kappa = g_1 / g_r* (for small steps sigma_1 /
sigma_r* of G).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tunewise.papers.lab.batched import batch, generator, normal
from tunewise.papers.lab.contract import Finding, LabSettings, Measurement, Plot, PlotCurve, log_log_slopes
from tunewise.papers.lab.linear_model import low_rank, moment

OUTPUTS, INPUTS, RANK, TARGET_RANK, SAMPLES = 24, 32, 6, 3, 320
RATE = 0.1
STEPS = 420
SIZES = (1e-7, 1e-9, 1e-11, 1e-13, 1e-15)  # a; the exponent does not hold for larger ones
LARGE_SIZES = (1e-1, 1e-2, 1e-3, 1e-5)
ALL_SIZES = (*LARGE_SIZES, *SIZES)
ROUNDING = 1e-12
TOLERANCE = 0.015


def exponent(condition: float) -> float:
    """The derived exponent of a in the best angle of a run, for steps of RATE / sigma_1."""
    kappa = math.log1p(RATE) / math.log1p(RATE / condition)
    return 2 / (2 * kappa + 1)


def descend(start: Tensor, gradient: Tensor, second: Tensor, steps: int = STEPS) -> tuple[Tensor, ...]:
    """Gradient descent on A and B from A0 (r, m), for D M (n, m) of rank TARGET_RANK and M (m, m).

    Returns, for every step, ||(I - U U^T) B||_F / ||B||_F and the sine of the largest angle between V and the top row
    space of A; then A and B after the last step.
    """
    target = torch.linalg.solve(second, gradient.mT).mT
    u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
    u, v = u[:, :TARGET_RANK], vh[:TARGET_RANK].mT
    a, b = start, start.new_zeros(gradient.shape[0], start.shape[0])
    right, left = [], []
    for _ in range(steps):
        slope = (b @ a - target) @ second
        a, b = a - RATE / s[0] * b.mT @ slope, b - RATE / s[0] * slope @ a.mT
        right.append(torch.linalg.norm(b - u @ (u.mT @ b)) / torch.linalg.norm(b))
        top = torch.linalg.svd(a, full_matrices=False).Vh[:TARGET_RANK].mT
        left.append(torch.linalg.matrix_norm(top - v @ (v.mT @ top), 2))
    return torch.stack(right), torch.stack(left), a, b


def problems(settings: LabSettings, condition: float, draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws of A0 at a = 1 (draws, r, m), G (draws, n, m) and M (draws, m, m)."""
    starts, gradients, moments = [], [], []
    for i in range(draws):
        draw = generator(settings.seed, i, int(condition * 1000))
        starts.append(normal(draw, RANK, INPUTS))
        gradients.append(low_rank(draw, OUTPUTS, INPUTS, TARGET_RANK, condition))
        moments.append(moment(normal(draw, SAMPLES, INPUTS)))
    return torch.stack(starts), torch.stack(gradients), torch.stack(moments)


def run(settings: LabSettings) -> Measurement:
    draws = settings.choose(8, 24)
    conditions = (1.0, 2.0) if settings.scale == "quick" else (1.0, 2.0, 4.0)
    findings: list[Finding] = []
    angles: list[PlotCurve] = []
    for condition in conditions:
        right, left, _, _ = batch(descend, *_all_sizes(*problems(settings, condition, draws)))
        right, left = (part.unflatten(0, (len(ALL_SIZES), draws)) for part in (right, left))  # (sizes, draws, steps)
        findings += _findings(condition, right, left.amin(-1))
        angles += _angles(condition, left.amin(-1))
    worst = f"condition number {conditions[-1]:g}"
    return Measurement(
        findings,
        [Plot("Best angle of the left space", "size a of A0", "sine of the largest angle", angles, log="xy")],
        [
            f"Plain LoRA by gradient descent at the rate {RATE:g} / sigma_1(G), {OUTPUTS} x {INPUTS}, rank {RANK} for "
            f"a target of rank {TARGET_RANK}, {SAMPLES} Gaussian samples, {draws} problems for each a, float64.",
            f"At the end of the run the angle is {left[-1, :, -1].mean().item():.2g} at a = {SIZES[-1]:g}, {worst}; "
            f"its best was {left[-1].amin(-1).mean().item():.2g}. At the end A follows the target D and no longer the "
            "one-step gradient D M: the alignment is of the early phase.",
            "This is a full-batch linear model with Gaussian inputs. It does not show that LoRA on a transformer with "
            "Adam, from a start of ordinary size, aligns as far.",
        ],
    )


def _all_sizes(start: Tensor, gradient: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments of `descend` for every problem from every size of start, sizes first."""
    sizes = torch.tensor(ALL_SIZES, dtype=start.dtype)
    starts = (sizes[:, None, None, None] * start).flatten(0, 1)
    return starts, gradient.repeat(len(sizes), 1, 1), second.repeat(len(sizes), 1, 1)


def _findings(condition: float, right: Tensor, best: Tensor) -> list[Finding]:
    """`right` is (sizes, draws, steps), `best` (sizes, draws)."""
    small = best[len(LARGE_SIZES) :]
    kappa, power = f"condition number {condition:g}", exponent(condition)
    return [
        Finding.exact(
            f"right space outside the gradient's, {kappa}",
            right.max().item(),
            (0.0, ROUNDING),
            f"largest share of B outside U, {best.numel()} runs of {STEPS} steps; Theorem 3.1: 0, but for rounding",
        ),
        Finding.mean(
            f"exponent of a in the left space's best angle, {kappa}",
            log_log_slopes(SIZES, small.T.tolist()),
            (power - TOLERANCE, power + TOLERANCE),
            f"derived: 2 / (2 kappa + 1) = {power:.4g} with the kappa of these steps, for small a; interval over "
            f"{best.shape[1]} problems",
        ),
        Finding.exact(
            f"largest ratio of the best angle to that of the next larger a, {kappa}",
            (small[1:] / small[:-1]).max().item(),
            (0.0, 1.0 - 1e-9),
            f"Theorem 3.2: the angle falls with a, for every problem; a from {SIZES[0]:g} to {SIZES[-1]:g}",
        ),
    ]


def _angles(condition: float, best: Tensor) -> list[PlotCurve]:
    measured = PlotCurve.mean(f"condition number {condition:g}", ALL_SIZES, best.T.tolist())
    power = [measured.y[-1] * (a / SIZES[-1]) ** exponent(condition) for a in SIZES]
    return [measured, PlotCurve.theory(f"theory, exponent {exponent(condition):.3g}", SIZES, power)]
