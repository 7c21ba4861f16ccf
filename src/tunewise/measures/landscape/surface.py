"""The loss over a grid of points of a plane, on the same fixed batches at every point; resumable row by row."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tunewise.measures._weight_space.batches import FixedBatches
from tunewise.measures._weight_space.plane import Plane
from tunewise.measures.finished import Check, no_check


class RowFile:
    """Finished rows of a grid, one a line, so that a stop loses one row; a file with another `key` is overwritten."""

    def __init__(self, path: Path | None, key: dict[str, Any]) -> None:
        self.path = path
        self.key = key
        lines = [] if path is None else _readable_lines(path)
        self.rows: dict[int, list[list[float | None]]] = {}
        if lines and lines[0] == key:
            self.rows = {line["row"]: line["losses"] for line in lines[1:]}

    def open(self) -> None:
        """Write the first line and the complete rows; the last one may have been cut short."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = [self.key, *({"row": row, "losses": losses} for row, losses in self.rows.items())]
            self.path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def add(self, row: int, losses: list[list[float | None]]) -> None:
        """A finished row: (points, batches)."""
        self.rows[row] = losses
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"row": row, "losses": losses}) + "\n")

    def remove(self) -> None:
        """The grid is finished and stored elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def losses_over(
    model: nn.Module,
    plane: Plane,
    xs: Sequence[float],
    ys: Sequence[float],
    batches: FixedBatches,
    *,
    rows: RowFile | None = None,
    check: Check = no_check,
    report_progress: Callable[[str], None] = lambda _: None,
) -> NDArray[np.float64]:
    """Mean loss of every batch at every point, (len(ys), len(xs), batches), fp64, NaN where it is not finite."""
    rows = rows or RowFile(None, {})
    with plane:
        rows.open()
        for i, y in enumerate(ys):
            if i not in rows.rows:
                report_progress(f"row {len(rows.rows) + 1} of {len(ys)}")
                plane.to_row(y)
                points = []
                for x in xs:
                    check()
                    plane.move(x)
                    points.append(batches.evaluate(model))
                losses = torch.stack(points).cpu().tolist()
                rows.add(i, [[v if math.isfinite(v) else None for v in point] for point in losses])
    return np.array([rows.rows[i] for i in range(len(ys))], dtype=np.float64)


def _readable_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file up to one that was cut short."""
    lines: list[dict[str, Any]] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            lines.append(json.loads(line))
    except (OSError, ValueError):
        return lines
    return lines
