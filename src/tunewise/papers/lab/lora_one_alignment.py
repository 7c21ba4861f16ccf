r"""Gradient descent on LoRA aligns with the one-step full gradient (2502.01235, Theorems 3.1 and 3.2).

From A0 ~ N(0, a^2), B0 = 0 on the linear model, with G = D M of rank r* and the step eta = RATE / sigma_1(G):

- the column space of B_t lies in the top-r* left singular space U of G for every t (the paper's right space);
- the top-r* row space of A_t comes up to theta to the right singular space V of G (the paper's left space): to any
  theta, if a is small enough.

How small [derived]. As long as B A is small against D, (A, B) grow like e^{g_i t}, g_i = log(1 + eta sigma_i), along
G's singular directions and A's part outside V stays as it was, so the angle falls like a / (a e^{g_r* t}). What ends
it is the term B^T B A M: it tilts the largest direction out of V by (a e^{g_1 t})^2, since M does not keep V. The two
are equal at e^{(2 g_1 + g_r*) t} = a^-2, where the angle is a^{2 / (2 kappa + 1)}, kappa = g_1 / g_r*, for small steps
sigma_1 / sigma_r* of G. So the best angle of a run falls with a at that exponent: slower, the worse G is conditioned.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tunewise.papers.lab.batched import batch, generator, normal, speedup
from tunewise.papers.lab.contract import Curve, Finding, Outcome, Plot, Settings, exactly
from tunewise.papers.lab.fits import band, log_log_slopes, measured
from tunewise.papers.lab.linear_model import low_rank, moment
from tunewise.papers.lab.registry import experiment

OUTPUTS, INPUTS, RANK, TARGET_RANK, SAMPLES = 24, 32, 6, 3, 320
RATE = 0.1
STEPS = 420
SIZES = (1e-7, 1e-9, 1e-11, 1e-13, 1e-15)
"""a. Larger ones never come to the regime of the exponent (see the plot's left end)."""
LARGE_SIZES = (1e-1, 1e-2, 1e-3, 1e-5)
ALL_SIZES = (*LARGE_SIZES, *SIZES)
ROUNDING = 1e-12
TOLERANCE = 0.015


def exponent(condition: float) -> float:
    """Of a in the best angle of a run, by the module's derivation, for steps of RATE / sigma_1."""
    kappa = math.log1p(RATE) / math.log1p(RATE / condition)
    return 2 / (2 * kappa + 1)


def descend(start: Tensor, gradient: Tensor, second: Tensor, noise: Tensor, steps: int = STEPS) -> tuple[Tensor, ...]:
    """One run of gradient descent on A and B.

    Args:
        start: A0, (r, m).
        gradient: D M, (n, m), of rank TARGET_RANK; the target is D = (D M) M^-1.
        second: M, (m, m).
        noise: (n, m), taken from every step's -gradient in dW, the first one's, G, included: what noise in the
            labels does. 0 for the theorem's G = D M.

    Returns:
        Per step: ||(I - U U^T) B||_F / ||B||_F; the sine of the largest angle between V and the top row space of A;
        and at the end A and B.
    """
    target = torch.linalg.solve(second, gradient.mT).mT
    u, s, vh = torch.linalg.svd(gradient - noise, full_matrices=False)
    u, v = u[:, :TARGET_RANK], vh[:TARGET_RANK].mT
    a, b = start, start.new_zeros(gradient.shape[0], start.shape[0])
    right, left = [], []
    for _ in range(steps):
        slope = (b @ a - target) @ second + noise
        a, b = a - RATE / s[0] * b.mT @ slope, b - RATE / s[0] * slope @ a.mT
        right.append(torch.linalg.norm(b - u @ (u.mT @ b)) / torch.linalg.norm(b))
        top = torch.linalg.svd(a, full_matrices=False).Vh[:TARGET_RANK].mT
        left.append(torch.linalg.matrix_norm(top - v @ (v.mT @ top), 2))
    return torch.stack(right), torch.stack(left), a, b


def problems(settings: Settings, condition: float, draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws of A0 at a = 1 (draws, r, m), G (draws, n, m) and M (draws, m, m)."""
    starts, gradients, moments = [], [], []
    for i in range(draws):
        draw = generator(settings.seed, i, int(condition * 1000))
        starts.append(normal(draw, RANK, INPUTS))
        gradients.append(low_rank(draw, OUTPUTS, INPUTS, TARGET_RANK, condition))
        moments.append(moment(normal(draw, SAMPLES, INPUTS)))
    stacked = (torch.stack(parts).to(settings.device) for parts in (starts, gradients, moments))
    return next(stacked), next(stacked), next(stacked)


def run(settings: Settings) -> Outcome:
    draws = settings.of(8, 24)
    conditions = (1.0, 2.0) if settings.scale == "quick" else (1.0, 2.0, 4.0)
    findings: list[Finding] = []
    angles: list[Curve] = []
    for condition in conditions:
        runs = _all_sizes(problems(settings, condition, draws))
        right, left, _, _ = batch(descend, *runs)
        right, left = (part.unflatten(0, (len(ALL_SIZES), draws)) for part in (right, left))  # (sizes, draws, steps)
        findings += _findings(condition, right, left.amin(-1))
        angles += _angles(condition, left.amin(-1))
    findings.append(_with_noise(settings, draws))
    worst = f"condition number {conditions[-1]:g}"
    return Outcome(
        findings,
        [
            Plot(
                "Best angle of the left space on a run",
                "size a of A0",
                "sine of the largest angle",
                angles,
                log_x=True,
                log_y=True,
            ),
            Plot(
                f"Along the run, {worst}",
                "step",
                "sine of the largest angle; share outside",
                _along(right, left),
                log_y=True,
                caption="The right space stays at rounding; the left one aligns, then turns to the target's own space.",
            ),
        ],
        [
            f"Plain LoRA by gradient descent at the rate {RATE:g} / sigma_1(G), {OUTPUTS} x {INPUTS}, rank {RANK} for "
            f"a target of rank {TARGET_RANK}, {SAMPLES} Gaussian samples, {draws} problems for each a, float64.",
            f"At the end of the run the angle is {left[-1, :, -1].mean().item():.2g} at a = {SIZES[-1]:g}, {worst}, "
            f"having been {left[-1].amin(-1).mean().item():.2g} at its best: A then follows the target D and no longer "
            "the one-step gradient D M. The alignment is of the early phase.",
            "A full-batch linear model with Gaussian inputs: nothing here says that LoRA on a transformer under Adam, "
            "from a start of ordinary size, aligns as far.",
        ],
        [speedup("50 steps of gradient descent", _short, *runs, rounds=3)],
    )


def _all_sizes(drawn: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every problem from every size of start: what a batch of `descend` takes, sizes first."""
    start, gradient, second = drawn
    sizes = torch.tensor(ALL_SIZES, dtype=start.dtype, device=start.device)
    starts = (sizes[:, None, None, None] * start).flatten(0, 1)
    gradients = gradient.repeat(len(sizes), 1, 1)
    return starts, gradients, second.repeat(len(sizes), 1, 1), torch.zeros_like(gradients)


def _findings(condition: float, right: Tensor, best: Tensor) -> list[Finding]:
    """`right` is (sizes, draws, steps), `best` (sizes, draws)."""
    small = best[len(LARGE_SIZES) :]
    kappa = f"condition number {condition:g}"
    return [
        exactly(
            f"right space outside the gradient's, {kappa}",
            right.max().item(),
            (0.0, ROUNDING),
            f"largest share of B outside U over {best.numel()} runs of {STEPS} steps; Theorem 3.1 says 0, and "
            "float64 rounds",
        ),
        measured(
            f"exponent of a in the left space's best angle, {kappa}",
            log_log_slopes(SIZES, small.T.tolist()),
            (exponent(condition) - TOLERANCE, exponent(condition) + TOLERANCE),
            f"derived: 2 / (2 kappa + 1) = {exponent(condition):.4g} with the kappa of these steps, for small a; "
            f"interval over {best.shape[1]} problems",
        ),
        exactly(
            f"largest ratio of the best angle to that of the next larger a, {kappa}",
            (small[1:] / small[:-1]).max().item(),
            (0.0, 1.0 - 1e-9),
            f"Theorem 3.2: the angle falls with a, for every problem; a from {SIZES[0]:g} to {SIZES[-1]:g}",
        ),
    ]


def _with_noise(settings: Settings, draws: int) -> Finding:
    start, gradient, second = problems(settings, 1.0, draws)
    noise = 0.1 * normal(generator(settings.seed, 7), *gradient.shape).to(settings.device) / INPUTS**0.5
    right, _, _, _ = batch(descend, SIZES[0] * start, gradient, second, noise)
    return exactly(
        "right space outside the gradient's, labels with noise",
        right.amax(-1).min().item(),
        (1e-3, 1.0),
        "no theorem: noise gives the gradient full rank, so B leaves its top-r* space; shows that the first number can "
        "fail",
    )


def _angles(condition: float, best: Tensor) -> list[Curve]:
    mean, low, high = band(best.T.tolist())
    power = [mean[-1] * (a / SIZES[-1]) ** exponent(condition) for a in SIZES]
    return [
        Curve(f"condition number {condition:g}", ALL_SIZES, mean, low, high),
        Curve(f"theory, exponent {exponent(condition):.3g}", SIZES, power, theory=True),
    ]


def _along(right: Tensor, left: Tensor) -> list[Curve]:
    """Every tenth step, for a large, a middling and the smallest start."""
    steps = list(range(1, STEPS + 1, 10))
    curves = []
    for place in (0, 2, len(ALL_SIZES) - 1):
        mean, low, high = band(left[place][:, ::10].tolist())
        curves.append(Curve(f"left space, a = {ALL_SIZES[place]:g}", steps, mean, low, high))
    outside = right[-1][:, ::10].mean(0).clamp_min(1e-17)
    return [*curves, Curve(f"right space, a = {ALL_SIZES[-1]:g}", steps, outside.tolist())]


def _short(start: Tensor, gradient: Tensor, second: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    return descend(start, gradient, second, noise, 50)


EXPERIMENT = experiment("lora-one-alignment", run)
