"""The loss over a grid of points of a plane, on the same fixed batches at every point."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tunewise.measures._weight_space.batches import FixedBatches
from tunewise.measures._weight_space.plane import Plane
from tunewise.measures.finished import Check, no_check


def losses_over(
    model: nn.Module,
    plane: Plane,
    xs: Sequence[float],
    ys: Sequence[float],
    batches: FixedBatches,
    *,
    check: Check = no_check,
    report_progress: Callable[[str], None] = lambda _: None,
) -> NDArray[np.float64]:
    """Mean loss of every batch at every point, (len(ys), len(xs), batches), fp64, NaN where it is not finite."""
    rows = []
    with plane:
        for i, y in enumerate(ys):
            report_progress(f"row {i + 1} of {len(ys)}")
            plane.to_row(y)
            points = []
            for x in xs:
                check()
                plane.move(x)
                points.append(batches.evaluate(model))
            rows.append(torch.stack(points).cpu().double().numpy())
    losses = np.array(rows)
    return np.where(np.isfinite(losses), losses, np.nan)
