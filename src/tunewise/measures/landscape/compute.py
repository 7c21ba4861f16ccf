"""The loss landscape around the minimum that a run found (1712.09913): the loss on fixed batches over planes through
the merged model's weights, spanned by random filter-normalised directions, or by the training's principal ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import nn

from tunewise.errors import MeasureError
from tunewise.measures._estimate import Estimate, jackknife, mean_over_batches
from tunewise.measures._weight_space.batches import FixedBatches, fixed_batches, plain_model
from tunewise.measures._weight_space.directions import Direction, random_direction, weights_of
from tunewise.measures._weight_space.plane import Plane, second_differences
from tunewise.measures.base import MeasureResult, MeasureSettings, Values
from tunewise.measures.finished import Check, FinishedRun
from tunewise.measures.landscape.path import Path, principal
from tunewise.measures.landscape.surface import RowFile, losses_over
from tunewise.training.trajectory import explain_missing

STEP = 0.05
"""Of the second difference: along a random direction, and as a share of the path's extent along a principal one."""
MARGIN = 0.15
"""A principal plane extends beyond the path by this share of its extent."""
FORMAT = 2

Kind = Literal["random", "pca"]
Array = NDArray[np.float64]


class LandscapeSettings(MeasureSettings):
    """Which planes through a minimum are drawn, and how finely."""

    grid: int = Field(51, ge=3, le=401, description="points a side")
    kinds: list[Kind] = Field(["random"], min_length=1, description="of planes")
    batches: int = Field(4, ge=2, description="fixed batches of training examples, of the run's batch size")
    span: float = Field(2.0, gt=0, description="random planes reach from -span to span; 1 is a row's own length")
    seed: int = Field(0, ge=0, description="of the batches and the directions")

    @field_validator("kinds", mode="before")
    @classmethod
    def _names_with_commas(cls, kinds: object) -> object:
        names = [k.strip() for k in kinds.split(",") if k.strip()] if isinstance(kinds, str) else kinds
        return list(dict.fromkeys(names)) if isinstance(names, list) else names


class PathInPlane(Values):
    """The snapshots' coordinates."""

    step: list[int]
    x: list[float]
    y: list[float]


class Surface(Values):
    """The loss over a grid of points of a plane through the selected epoch's weights, which are at the origin."""

    x: list[float]
    y: list[float]
    loss: list[list[float | None]]
    """A row for each y; None where the loss is not finite."""
    curvature: tuple[Estimate, Estimate]
    """Along both axes."""
    seconds: float
    area: Estimate | None = None
    """Of a random plane: where the loss is below `level`, in units of its axes squared."""
    explained: tuple[float, float] | None = None
    """Of a principal plane: shares of the path's variance."""
    path: PathInPlane | None = None


class LandscapeResult(MeasureResult):
    sharpness: Estimate
    """As in `sharpness`, over the two random directions of the plane."""
    loss: Estimate
    """At the centre, the selected epoch."""
    level: float
    """The edge of the basin: the centre's loss + log(classes) / 4."""
    surfaces: dict[Kind, Surface]
    missing: dict[Kind, str]
    """Why a surface that was asked for is missing."""
    weights: int
    """Numbers that a random direction moves."""
    batches: int
    batch_size: int


def compute(run: FinishedRun, settings: LandscapeSettings, check: Check) -> LandscapeResult:
    """Raises `MeasureError` where none of the planes can be computed."""
    model = plain_model(run)
    weights = weights_of(model)
    batches = fixed_batches(run, settings.batches, settings.seed)
    parameters = {name: weight.parameter for name, weight in weights.items()}
    first, second = (random_direction(weights, settings.seed, number) for number in (0, 1))
    along = second_differences(model, parameters, [(first, STEP), (second, STEP)], batches, check)
    centre = batches.evaluate(model).cpu().numpy()
    level = float(centre.mean()) + math.log(max(len(run.task.labels), 2)) / 4
    grids = _Grids(run, model, batches, settings, check)
    surfaces: dict[Kind, Surface] = {}
    missing: dict[Kind, str] = {}
    if "random" in settings.kinds:
        axis = np.linspace(-settings.span, settings.span, settings.grid)
        grid, losses = grids.over("random", parameters, (first, second), (axis, axis))
        cell = (axis[1] - axis[0]) ** 2
        area = jackknife(np.moveaxis(losses, 2, 0), lambda mean: float((mean <= level).sum() * cell))
        curvature = (mean_over_batches(along[0].numpy()), mean_over_batches(along[1].numpy()))
        surfaces["random"] = Surface(**grid, curvature=curvature, area=area)
    del first, second
    if "pca" in settings.kinds:
        try:
            surfaces["pca"] = _principal_surface(run, model, grids)
        except MeasureError as reason:
            missing["pca"] = str(reason)
    if not surfaces:
        raise MeasureError(missing["pca"])
    grids.remove_rows()
    return LandscapeResult(
        lacks_snapshots="pca" in missing and not run.snapshots,
        sharpness=mean_over_batches(along.mean(0).numpy()),
        loss=mean_over_batches(centre),
        level=level,
        surfaces=surfaces,
        missing=missing,
        weights=sum(p.numel() for p in parameters.values()),
        batches=len(batches),
        batch_size=len(batches.labels[0]),
    )


def _principal_surface(run: FinishedRun, model: nn.Module, grids: _Grids) -> Surface:
    """The plane of the path's two principal directions, over a range that holds the path and the centre."""
    if not run.snapshots:
        raise MeasureError(explain_missing(run.spec.method.name))
    path = Path(run)
    components = principal(path)
    parameters = dict(model.named_parameters())
    places = components.coordinates.numpy()
    axes, steps = [], []
    for along in places.T:
        low, high = min(along.min(), 0.0), max(along.max(), 0.0)
        extent = high - low
        axes.append(np.linspace(low - MARGIN * extent, high + MARGIN * extent, grids.settings.grid))
        steps.append(STEP * extent)
    lines = [(components.first, steps[0]), (components.second, steps[1])]
    curved = second_differences(model, parameters, lines, grids.batches, grids.check)
    grid, _ = grids.over("pca", parameters, (components.first, components.second), (axes[0], axes[1]))
    return Surface(
        **grid,
        curvature=(mean_over_batches(curved[0].numpy()), mean_over_batches(curved[1].numpy())),
        explained=components.explained,
        path=PathInPlane(step=path.steps, x=places[:, 0].tolist(), y=places[:, 1].tolist()),
    )


@dataclass
class _Grids:
    """What all grids of one run share."""

    run: FinishedRun
    model: nn.Module
    batches: FixedBatches
    settings: LandscapeSettings
    check: Check
    files: list[RowFile] = field(default_factory=list)

    def over(
        self,
        kind: Kind,
        parameters: Mapping[str, nn.Parameter],
        directions: tuple[Direction, Direction],
        axes: tuple[Array, Array],
    ) -> tuple[dict[str, Any], Array]:
        """`x`, `y`, `loss` and `seconds` of the surface, and the losses (rows, points, batches)."""
        begun = time.monotonic()
        xs, ys = (axis.tolist() for axis in axes)
        key = {"format": FORMAT, "x": xs, "y": ys, "settings": self.settings.model_dump(mode="json", exclude={"kinds"})}
        rows = RowFile(self.run.folder / "measures" / f"landscape-{kind}.rows.jsonl", key)
        losses = losses_over(
            self.model,
            Plane(parameters, *directions),
            xs,
            ys,
            self.batches,
            rows=rows,
            check=self.check,
            report_progress=lambda detail: self.run.report_progress(f"{kind} plane, {detail}"),
        )
        mean = losses.mean(axis=2)
        loss = [[float(f"{v:.9g}") if math.isfinite(v) else None for v in row] for row in mean]
        self.files.append(rows)
        return {"x": xs, "y": ys, "loss": loss, "seconds": time.monotonic() - begun}, losses

    def remove_rows(self) -> None:
        """All surfaces are computed."""
        for rows in self.files:
            rows.remove()
