r"""A start from the one-step gradient is already close to the target (2502.01235, Theorem 3.3).

On the linear model with Gaussian inputs G = D M, M = X^T X / N, and B0 A0 = [G]_r, its best rank-r part. For r >= r*,
the rank of D, that is G itself, and ||B0 A0 - D|| = ||D (M - I)|| is of order ||D|| sqrt(m / N).

The theorem needs r >= r* (otherwise sigma_{r+1}(D) is left over for every N) and inputs of covariance I (otherwise G
tends to D Sigma, not to D); both are shown by a counterexample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tunewise.papers.lab.batched import batch, generator, normal
from tunewise.papers.lab.contract import Finding, LabSettings, Measurement, Plot, PlotCurve, log_log_slopes
from tunewise.papers.lab.linear_model import low_rank, moment, spectrum

OUTPUTS, INPUTS, TARGET_RANK, CONDITION = 16, 24, 3, 2.0
SAMPLES = (256, 512, 1024, 2048, 4096, 8192)
EXPONENT = -0.5
TOLERANCE = 0.05
SIGMA_RATIO = 2.0  # input variances of the skewed case go from 1 to this
CHUNK = 25  # problems in memory at a time


def start(gradient: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A0 (r, m) and B0 (n, r) of the theorem: B0 A0 = [G]_r, singular values shared equally."""
    u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
    root = s[:rank].sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root


def distance(target: Tensor, inputs: Tensor, rank: int = TARGET_RANK) -> Tensor:
    """||B0 A0 - D||_2 / ||D||_2 for D (n, m) and X (N, m)."""
    a, b = start(target @ moment(inputs), rank)
    return torch.linalg.matrix_norm(b @ a - target, 2) / torch.linalg.matrix_norm(target, 2)


def _below(target: Tensor, inputs: Tensor) -> Tensor:
    return distance(target, inputs, TARGET_RANK - 1)


def run(settings: LabSettings) -> Measurement:
    draws = settings.choose(48, 200)
    targets = torch.stack(
        [low_rank(generator(settings.seed, i), OUTPUTS, INPUTS, TARGET_RANK, CONDITION) for i in range(draws)]
    )
    variances = torch.linspace(1, SIGMA_RATIO, INPUTS, dtype=torch.float64)
    enough, too_few, skewed = [], [], []  # a row for each N
    for samples in SAMPLES:
        x = torch.stack([normal(generator(settings.seed, i, samples), samples, INPUTS) for i in range(draws)])
        enough.append(batch(distance, targets, x, chunk=CHUNK).tolist())
        too_few.append(batch(_below, targets, x, chunk=CHUNK).tolist())
        skewed.append(batch(distance, targets, x * variances.sqrt(), chunk=CHUNK).tolist())
    left_over = spectrum(TARGET_RANK, CONDITION)[TARGET_RANK - 1].item()
    limits = torch.linalg.matrix_norm(targets * (variances - 1), 2) / torch.linalg.matrix_norm(targets, 2)
    largest = f"distance at N = {SAMPLES[-1]} over"
    findings = [
        Finding.mean(
            "log-log slope of the relative distance in N, r = r*",
            log_log_slopes(SAMPLES, list(zip(*enough))),
            (EXPONENT - TOLERANCE, EXPONENT + TOLERANCE),
            f"Theorem 3.3: -1/2; interval over {draws} problems with their own inputs",
        ),
        Finding.mean(
            f"{largest} the least that rank r* - 1 leaves",
            [d / left_over for d in too_few[-1]],
            (0.9, 1.1),
            "no rank below r* comes closer than sigma_{r+1} / sigma_1 (Eckart-Young), and the start tends to that",
        ),
        Finding.mean(
            f"{largest} its limit, inputs of variances 1 to {SIGMA_RATIO:g}",
            [d / limit for d, limit in zip(skewed[-1], limits.tolist())],
            (0.9, 1.1),
            "without covariance I the start tends to D Sigma, not to D: the limit is ||D (Sigma - I)|| / ||D||",
        ),
    ]
    names = ("rank r*", "rank r* - 1", f"rank r*, input variances 1 to {SIGMA_RATIO:g}")
    curves = [PlotCurve.mean(name, SAMPLES, list(zip(*rows))) for name, rows in zip(names, (enough, too_few, skewed))]
    root = [curves[0].y[0] * (n / SAMPLES[0]) ** EXPONENT for n in SAMPLES]
    curves.append(PlotCurve.theory("theory, slope -1/2", SAMPLES, root))
    title = "Distance of the spectral start to the target"
    return Measurement(
        findings,
        [Plot(title, "samples N", "||B0 A0 - D|| / ||D||", curves, log="xy")],
        [
            f"Linear model, {OUTPUTS} x {INPUTS}, target of rank {TARGET_RANK} and condition number {CONDITION:g}, "
            f"{draws} problems at each N, float64.",
            "The one-step gradient is the target only for white inputs and squared error. On a transformer the start "
            "has the right directions to first order, and its length is a hyperparameter.",
        ],
    )
