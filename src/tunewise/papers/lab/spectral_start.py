r"""A start from the one-step gradient is already close to the target (2502.01235, Theorem 3.3).

On the linear model with Gaussian inputs G = D M, M = X^T X / N, and B0 A0 = [G]_r, its best rank-r part. For r >= r*,
D's rank, that is G itself, and ||B0 A0 - D|| = ||D (M - I)|| is of order ||D|| sqrt(m / N).

Two things the theorem needs, shown by what happens without them: r >= r* (else sigma_{r+1}(D) is left over whatever N)
and inputs of covariance I (else G tends to D Sigma, not to D).

The package's own start has G's singular vectors and ratios of singular values, but a length of its own choice
(2502.01235, Algorithm 1: S / S_1, gamma, alpha / sqrt(r)): it is compared up to its length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunewise.papers.lab.batched import batch, generator, normal, speedup
from tunewise.papers.lab.contract import Curve, Finding, Outcome, Plot, Settings, exactly
from tunewise.papers.lab.fits import band, log_log_slopes, measured
from tunewise.papers.lab.linear_model import LinearModel, effective_weight, low_rank, moment, spectrum
from tunewise.papers.lab.registry import experiment

OUTPUTS, INPUTS, TARGET_RANK, CONDITION = 16, 24, 3, 2.0
SAMPLES = (256, 512, 1024, 2048, 4096, 8192)
EXPONENT = -0.5
TOLERANCE = 0.05
SIGMA_RATIO = 2.0
"""Input variances of the anisotropic case go from 1 to this."""


def start(gradient: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A0 (r, m) and B0 (n, r) of the theorem: B0 A0 = [G]_r, the two sharing each singular value."""
    u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
    root = s[:rank].sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root


def distance(target: Tensor, inputs: Tensor, rank: int = TARGET_RANK) -> Tensor:
    """||B0 A0 - D||_2 / ||D||_2 for D (n, m) and X (N, m)."""
    a, b = start(target @ moment(inputs), rank)
    return torch.linalg.matrix_norm(b @ a - target, 2) / torch.linalg.matrix_norm(target, 2)


def _below(target: Tensor, inputs: Tensor) -> Tensor:
    return distance(target, inputs, TARGET_RANK - 1)


def run(settings: Settings) -> Outcome:
    draws, chunk = settings.of(48, 200), 25
    targets = torch.stack(
        [
            low_rank(generator(settings.seed, i), OUTPUTS, INPUTS, TARGET_RANK, CONDITION, settings.device)
            for i in range(draws)
        ]
    )
    variances = torch.linspace(1, SIGMA_RATIO, INPUTS, dtype=torch.float64, device=settings.device)
    enough, too_few, skewed = [], [], []
    for samples in SAMPLES:
        x = torch.stack([normal(generator(settings.seed, i, samples), samples, INPUTS) for i in range(draws)])
        x = x.to(settings.device)
        enough.append(batch(distance, targets, x, chunk=chunk).tolist())
        too_few.append(batch(_below, targets, x, chunk=chunk).tolist())
        skewed.append(batch(distance, targets, x * variances.sqrt(), chunk=chunk).tolist())
        if samples == SAMPLES[0]:
            faster = speedup("a start and its distance", distance, targets, x, rounds=3)
    left_over = spectrum(TARGET_RANK, CONDITION)[TARGET_RANK - 1].item()
    limits = torch.linalg.matrix_norm(targets * (variances - 1), 2) / torch.linalg.matrix_norm(targets, 2)
    findings = [
        measured(
            "log-log slope of the relative distance in N, r = r*",
            log_log_slopes(SAMPLES, list(zip(*enough))),
            (EXPONENT - TOLERANCE, EXPONENT + TOLERANCE),
            f"Theorem 3.3: -1/2; interval over {draws} problems of their own inputs each",
        ),
        measured(
            "distance x sqrt(N / m) at the largest N, r = r*",
            [d * (SAMPLES[-1] / INPUTS) ** 0.5 for d in enough[-1]],
            None,
            "the theorem's constant is not told; of order 1",
        ),
        measured(
            f"distance at N = {SAMPLES[-1]} over what rank r* - 1 must leave",
            [d / left_over for d in too_few[-1]],
            (0.9, 1.1),
            "no rank below r* gets closer than sigma_{r+1} / sigma_1 (Eckart-Young), and the start tends to that",
        ),
        measured(
            f"distance at N = {SAMPLES[-1]} over its limit, inputs of variances 1 to {SIGMA_RATIO:g}",
            [d / limit for d, limit in zip(skewed[-1], limits.tolist())],
            (0.9, 1.1),
            "without covariance I the start tends to D Sigma and not to D: the limit is ||D (Sigma - I)|| / ||D||",
        ),
        *_package(settings),
    ]
    curves = []
    for name, rows in (
        ("rank r*", enough),
        ("rank r* - 1", too_few),
        (f"rank r*, input variances 1 to {SIGMA_RATIO:g}", skewed),
    ):
        mean, low, high = band(list(zip(*rows)))
        curves.append(Curve(name, SAMPLES, mean, low, high))
    root = [curves[0].y[0] * (n / SAMPLES[0]) ** EXPONENT for n in SAMPLES]
    curves.append(Curve("theory, slope -1/2", SAMPLES, root, theory=True))
    return Outcome(
        findings,
        [
            Plot(
                "Distance of the spectral start to the target",
                "samples N",
                "||B0 A0 - D|| / ||D||",
                curves,
                log_x=True,
                log_y=True,
            )
        ],
        [
            f"Linear model, {OUTPUTS} x {INPUTS}, target of rank {TARGET_RANK} and condition number {CONDITION:g}, "
            f"{draws} problems at each N, float64.",
            "The one-step gradient is the target only where inputs are white and errors squared. On a transformer the "
            "start has the right directions to first order, and its length is a hyperparameter.",
        ],
        [faster],
    )


def _package(settings: Settings) -> list[Finding]:
    """The package's own singular values and start on one of these problems, against the dense float64 ones."""
    import tunewise
    from tunewise.methods.one_step import gradient_svd

    samples, rank = SAMPLES[1], TARGET_RANK
    draw = generator(settings.seed, 0)
    target = low_rank(draw, OUTPUTS, INPUTS, rank, CONDITION)
    weight, x = normal(draw, OUTPUTS, INPUTS), normal(draw, samples, INPUTS)
    labels = x @ (weight + target).T
    batches: list[dict[str, Any]] = [
        {"inputs": part, "labels": told} for part, told in zip(x.split(100), labels.split(100))
    ]
    gradient = target @ moment(x)
    model = LinearModel(weight)
    found = gradient_svd(model, {"linear": model.linear}, batches, rank=rank, seed=settings.seed)
    u, s, v = (part.double() for part in found["linear", 0, OUTPUTS])
    attached = tunewise.attach(model, "lora-one", rank=rank, targets=["linear"], batches=batches, seed=settings.seed)
    shipped = effective_weight(attached, INPUTS) - weight
    length = ((shipped * gradient).sum() / shipped.square().sum()).item()

    def relative(other: Tensor) -> float:
        return (torch.linalg.matrix_norm(other - gradient, 2) / torch.linalg.matrix_norm(gradient, 2)).item()

    return [
        exactly(
            "relative difference of the package's randomized SVD (float32) to the dense gradient",
            relative((u * s) @ v.T),
            (0.0, 1e-4),
            "gradient_svd over batches of 100; G has rank r*, so [G]_r is G",
        ),
        exactly(
            "relative difference of lora-one's start to the gradient, after the best change of length",
            relative(length * shipped),
            (0.0, 1e-4),
            "attach('lora-one') on the same model: parallel to the theorem's start",
        ),
        exactly(
            "length of lora-one's start over the theorem's",
            1 / length,
            None,
            "alpha / (sqrt(r) gamma S_1): set by gamma and alpha and not by the data's scale",
        ),
    ]


EXPERIMENT = experiment("spectral-start", run)
