"""The loss landscape around the minimum that a run found (1712.09913): the loss on fixed batches over planes through
the merged model's weights, spanned by random filter-normalised directions, or by the training's principal ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tunewise.errors import MeasureError
from tunewise.measures._estimate import jackknife, mean_over_batches
from tunewise.measures._weight_space.batches import FixedBatches, fixed_batches, plain_model
from tunewise.measures._weight_space.directions import Direction, random_direction, weights_of
from tunewise.measures._weight_space.plane import Plane
from tunewise.measures.finished import FinishedRun
from tunewise.measures.landscape.path import Components, Path, principal
from tunewise.measures.landscape.surface import Rows, losses_over
from tunewise.measures.settings import LandscapeSettings
from tunewise.measures.sharpness.worst_rise import second_differences
from tunewise.training.trajectory import no_trajectory

STEP = 0.05
"""Of the second difference: along a random direction, and as a share of the path's extent along a principal one."""
MARGIN = 0.15
"""A principal plane reaches beyond the path by this share of its extent."""
FORMAT = 1

Losses = NDArray[np.float64]
"""(rows, points, batches)."""


def landscape(run: FinishedRun, check: Callable[[], None], settings: LandscapeSettings | None = None) -> dict[str, Any]:
    """The loss over a grid of each kind of plane that is asked for.

    Returns:
        sharpness, sharpness_low, sharpness_high: as in `measures.sharpness`, over the plane's two random directions.
        loss: {value, low, high} of the mean loss at the centre, the selected epoch.
        level: the loss below which a point counts as inside the basin: the centre's + log(classes) / 4.
        surfaces: by kind: `x`, `y` (points a side), `loss` (rows of y; null where it is not finite), `curvature` along
            both axes, `points_together`, `seconds`; of a random plane `area` below the level, in units of its axes
            squared; of a principal plane `explained` shares of the path's variance and `path` {step, x, y}.
        missing: by kind: why there is no such surface.
        batches, batch_size, weights: on what the loss is taken, and how many numbers a random direction moves.

    Rows are kept beside the run's measures while a grid is made, so a stop costs one row at most. Raises
    `MeasureError` where no plane of the kinds asked for can be had.
    """
    chosen = settings or LandscapeSettings()
    model = plain_model(run)
    weights = weights_of(model)
    batches = fixed_batches(run, chosen.batches, chosen.seed)
    parameters = {name: weight.parameter for name, weight in weights.items()}
    first, second = (random_direction(weights, chosen.seed, number) for number in (0, 1))
    along = second_differences(model, parameters, [(first, STEP), (second, STEP)], batches, check)
    sharp = mean_over_batches(along.mean(0).numpy())
    centre = batches.evaluate(model).cpu().numpy()
    level = float(centre.mean()) + math.log(max(len(run.task.labels), 2)) / 4
    grid = _Grid(run, model, batches, chosen, check)
    surfaces: dict[str, Any] = {}
    missing: dict[str, str] = {}
    if "random" in chosen.kinds:
        axis = np.linspace(-chosen.span, chosen.span, chosen.grid)
        made, losses = grid.over("random", parameters, (first, second), (axis, axis))
        cell = (axis[1] - axis[0]) ** 2
        surfaces["random"] = {
            **made,
            "curvature": [mean_over_batches(one.numpy()) for one in along],
            "area": jackknife(np.moveaxis(losses, 2, 0), lambda mean: float((mean <= level).sum() * cell)),
        }
    del first, second
    if "pca" in chosen.kinds:
        try:
            surfaces["pca"] = _principal(run, model, grid)
        except MeasureError as reason:
            missing["pca"] = str(reason)
    if not surfaces:
        raise MeasureError(missing["pca"])
    grid.forget()
    return {
        "sharpness": sharp["value"],
        "sharpness_low": sharp["low"],
        "sharpness_high": sharp["high"],
        "loss": mean_over_batches(centre),
        "level": level,
        "surfaces": surfaces,
        "missing": missing,
        "waits_for_trajectory": "pca" in missing and not run.snapshots,
        "batches": len(batches),
        "batch_size": len(batches.labels[0]),
        "weights": sum(p.numel() for p in parameters.values()),
    }


def _principal(run: FinishedRun, model: nn.Module, grid: _Grid) -> dict[str, Any]:
    """The plane of the path's two principal directions, over a range that holds the whole path and the centre."""
    if not run.snapshots:
        raise MeasureError(no_trajectory(run.spec.method.name))
    path = Path(run)
    found: Components = principal(path)
    parameters = dict(model.named_parameters())
    places = found.coordinates.numpy()
    axes, steps = [], []
    for along in places.T:
        low, high = min(along.min(), 0.0), max(along.max(), 0.0)
        extent = high - low
        axes.append(np.linspace(low - MARGIN * extent, high + MARGIN * extent, grid.settings.grid))
        steps.append(STEP * extent)
    lines = [(found.first, steps[0]), (found.second, steps[1])]
    curved = second_differences(model, parameters, lines, grid.batches, grid.check)
    made, _ = grid.over("pca", parameters, (found.first, found.second), (axes[0], axes[1]))
    return {
        **made,
        "curvature": [mean_over_batches(one.numpy()) for one in curved],
        "explained": list(found.explained),
        "path": {"step": path.steps, "x": places[:, 0].tolist(), "y": places[:, 1].tolist()},
    }


class _Grid:
    """What all grids of one run share."""

    def __init__(
        self,
        run: FinishedRun,
        model: nn.Module,
        batches: FixedBatches,
        settings: LandscapeSettings,
        check: Callable[[], None],
    ) -> None:
        self.run, self.model, self.batches, self.settings, self.check = run, model, batches, settings, check
        self.rows: list[Rows] = []

    def over(
        self,
        kind: str,
        parameters: Mapping[str, nn.Parameter],
        directions: tuple[Direction, Direction],
        axes: tuple[NDArray[np.float64], NDArray[np.float64]],
    ) -> tuple[dict[str, Any], Losses]:
        """The surface as it is stored, and the losses of all batches."""
        begun = time.monotonic()
        xs, ys = (axis.tolist() for axis in axes)
        key = {"format": FORMAT, "x": xs, "y": ys, "settings": self.settings.model_dump(mode="json", exclude={"kinds"})}
        rows = Rows(self.run.folder / "measures" / f"landscape-{kind}.rows.jsonl", key)
        plane = Plane(parameters, *directions)
        losses, together = losses_over(
            self.model,
            plane,
            xs,
            ys,
            self.batches,
            together=self.settings.together,
            rows=rows,
            check=self.check,
            say=lambda detail: self.run.say(f"{kind} plane, {detail}"),
        )
        mean = losses.mean(axis=2)
        surface = {
            "x": xs,
            "y": ys,
            "loss": [[float(f"{v:.9g}") if math.isfinite(v) else None for v in row] for row in mean],
            "points_together": together,
            "seconds": time.monotonic() - begun,
        }
        self.rows.append(rows)
        return surface, losses

    def forget(self) -> None:
        """All grids are made: their rows need not be found again."""
        for rows in self.rows:
            rows.forget()
