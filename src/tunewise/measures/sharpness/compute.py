"""How sharp the minimum is that a run found, with intervals over batches.

`sharpness` is the mean of d^T H d over random filter-normalised directions d (1712.09913) in all linear and
convolutional weights of the merged model: the second derivative of the loss along a random line on which 1 is as long
as each weight's rows. Scaling a layer up and its successor down does not change it, and it means the same for all
methods on one base model, whatever they train.
"""

from __future__ import annotations

import torch
from pydantic import Field

from tunewise.errors import MeasureError
from tunewise.measures._estimate import Estimate, mean_over_batches
from tunewise.measures._weight_space.batches import fixed_batches, plain_model
from tunewise.measures._weight_space.directions import random_direction, weights_of
from tunewise.measures._weight_space.plane import second_differences
from tunewise.measures.base import MeasureResult, MeasureSettings
from tunewise.measures.finished import Check, FinishedRun
from tunewise.measures.sharpness.hessian import HessianFigures, hessian_figures
from tunewise.measures.sharpness.worst_rise import epsilon_sharpness, worst_rise


class SharpnessSettings(MeasureSettings):
    """How sharp a minimum is: on how much data, in which directions, how far."""

    batches: int = Field(8, ge=2, description="fixed batches of training examples, of the run's batch size")
    directions: int = Field(8, ge=1, description="random filter-normalised directions")
    step: float = Field(0.05, gt=0, description="of the second difference; 1 is as long as each row of a weight")
    epsilon: float = Field(0.01, gt=0, description="radius of the search for the worst loss, in the same unit")
    ascent: int = Field(8, ge=1, description="steps of that search")
    eigenvalues: int = Field(3, ge=0, description="of the Hessian, from the largest down; 0 leaves the Hessian out")
    probes: int = Field(8, ge=1, description="random vectors behind the Hessian's trace")
    seed: int = Field(0, ge=0, description="of the batches, the directions and the probes")


class SharpnessResult(MeasureResult):
    sharpness: Estimate
    """Nats."""
    spread: float
    """Standard deviation over the directions."""
    epsilon_sharpness: Estimate
    """In percent of 1 + L; see `worst_rise`."""
    loss: Estimate
    """At the centre."""
    hessian: HessianFigures | None
    hessian_missing: str | None
    """Why there is no Hessian although it was asked for."""
    weights: int
    """Numbers that a direction moves."""
    batches: int
    batch_size: int


def compute(run: FinishedRun, settings: SharpnessSettings, check: Check) -> SharpnessResult:
    model = plain_model(run)
    weights = weights_of(model)
    batches = fixed_batches(run, settings.batches, settings.seed)
    parameters = {name: weight.parameter for name, weight in weights.items()}
    curvatures = []
    for number in range(settings.directions):  # one at a time: a direction is as large as the model
        lines = [(random_direction(weights, settings.seed, number), settings.step)]
        curvatures.append(second_differences(model, parameters, lines, batches, check)[0])
    along = torch.stack(curvatures)
    start = random_direction(weights, settings.seed, 0)
    here, worst = worst_rise(
        model, weights, start, batches, epsilon=settings.epsilon, steps=settings.ascent, check=check
    )
    size = sum(p.numel() for p in parameters.values())
    del model, weights, parameters
    hessian, hessian_missing = None, None
    if settings.eigenvalues:
        options = {"eigenvalues": settings.eigenvalues, "probes": settings.probes, "seed": settings.seed}
        try:
            hessian = hessian_figures(run, batches, check=check, **options)
        except MeasureError as reason:
            hessian_missing = str(reason)
    return SharpnessResult(
        sharpness=mean_over_batches(along.mean(0).numpy()),
        spread=float(along.mean(1).std()) if len(along) > 1 else 0.0,
        epsilon_sharpness=epsilon_sharpness(here, worst),
        loss=mean_over_batches(here.numpy()),
        hessian=hessian,
        hessian_missing=hessian_missing,
        weights=size,
        batches=len(batches),
        batch_size=len(batches.labels[0]),
    )
