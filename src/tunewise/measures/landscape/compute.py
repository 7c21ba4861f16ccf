"""The loss landscape around the minimum that a run found (1712.09913): the loss on fixed batches over a plane through
the merged model's weights, spanned by two random filter-normalised directions.
"""

from __future__ import annotations

import math
import time

import numpy as np
from pydantic import Field

from tunewise.measures._estimate import Estimate, jackknife, mean_over_batches
from tunewise.measures._weight_space.batches import fixed_batches, plain_model
from tunewise.measures._weight_space.directions import random_direction, weights_of
from tunewise.measures._weight_space.plane import Plane, second_differences
from tunewise.measures.base import MeasureResult, MeasureSettings, Values
from tunewise.measures.finished import Check, FinishedRun
from tunewise.measures.landscape.surface import losses_over

STEP = 0.05
"""Of the second difference."""


class LandscapeSettings(MeasureSettings):
    """How large a plane through the minimum is drawn, and how finely."""

    grid: int = Field(51, ge=3, le=401, description="points a side")
    batches: int = Field(4, ge=2, description="fixed batches of training examples, of the run's batch size")
    span: float = Field(2.0, gt=0, description="the plane reaches from -span to span; 1 is a row's own length")
    seed: int = Field(0, ge=0, description="of the batches and the directions")


class Surface(Values):
    """The loss over a grid of points of a plane through the selected epoch's weights, which are at the origin."""

    x: list[float]
    y: list[float]
    loss: list[list[float | None]]
    """A row for each y; None where the loss is not finite."""
    curvature: tuple[Estimate, Estimate]
    """Along both axes."""
    seconds: float
    area: Estimate
    """Where the loss is below `level`, in units of the axes squared."""


class LandscapeResult(MeasureResult):
    sharpness: Estimate
    """As in `sharpness`, over the two random directions of the plane."""
    loss: Estimate
    """At the centre, the selected epoch."""
    level: float
    """The edge of the basin: the centre's loss + log(classes) / 4."""
    surface: Surface
    weights: int
    """Numbers that a direction moves."""
    batches: int
    batch_size: int


def compute(run: FinishedRun, settings: LandscapeSettings, check: Check) -> LandscapeResult:
    model = plain_model(run)
    weights = weights_of(model)
    batches = fixed_batches(run, settings.batches, settings.seed)
    parameters = {name: weight.parameter for name, weight in weights.items()}
    first, second = (random_direction(weights, settings.seed, number) for number in (0, 1))
    along = second_differences(model, parameters, [(first, STEP), (second, STEP)], batches, check)
    centre = batches.evaluate(model).cpu().numpy()
    level = float(centre.mean()) + math.log(max(len(run.task.labels), 2)) / 4
    axis = np.linspace(-settings.span, settings.span, settings.grid)
    begun, points = time.monotonic(), axis.tolist()
    plane = Plane(parameters, first, second)
    losses = losses_over(model, plane, points, points, batches, check=check, report_progress=run.report_progress)
    mean = losses.mean(axis=2)
    cell = (axis[1] - axis[0]) ** 2
    surface = Surface(
        x=points,
        y=points,
        loss=[[float(f"{v:.9g}") if math.isfinite(v) else None for v in row] for row in mean],
        curvature=(mean_over_batches(along[0].numpy()), mean_over_batches(along[1].numpy())),
        seconds=time.monotonic() - begun,
        area=jackknife(np.moveaxis(losses, 2, 0), lambda mean: float((mean <= level).sum() * cell)),
    )
    return LandscapeResult(
        sharpness=mean_over_batches(along.mean(0).numpy()),
        loss=mean_over_batches(centre),
        level=level,
        surface=surface,
        weights=sum(p.numel() for p in parameters.values()),
        batches=len(batches),
        batch_size=len(batches.labels[0]),
    )
