"""The loss over a grid of points of a plane, on the same fixed batches at every point; resumable row by row."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from tunewise.measures._weight_space.batches import FixedBatches
from tunewise.measures._weight_space.plane import Plane

_TRIED = (8, 32)
_WORTH_IT = 0.85
"""Points are evaluated together where that takes less than this share of the time one by one."""


class Rows:
    """Finished rows of a grid in a file, a line each, so that a stop or a kill loses at most one row. A file that was
    begun with another `key` is begun anew. `path` None keeps nothing."""

    def __init__(self, path: Path | None, key: dict[str, Any]) -> None:
        self.path = path
        self.done: dict[int, list[list[float | None]]] = {}
        self.together: int | None = None
        if path is None:
            return
        lines = _readable(path)
        if lines and {k: v for k, v in lines[0].items() if k != "together"} == key:
            self.together = lines[0]["together"]
            self.done = {line["row"]: line["losses"] for line in lines[1:]}
        else:
            path.unlink(missing_ok=True)
        self.key = key

    def begin(self, together: int) -> None:
        """Write the head of a new file, or the whole rows of one that was cut short."""
        self.together = together
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = [{**self.key, "together": together}, *({"row": r, "losses": v} for r, v in self.done.items())]
            self.path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def keep(self, row: int, losses: list[list[float | None]]) -> None:
        """A finished row: (points, batches)."""
        self.done[row] = losses
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"row": row, "losses": losses}) + "\n")

    def forget(self) -> None:
        """The grid is finished, and stored elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def losses_over(
    model: nn.Module,
    plane: Plane,
    xs: Sequence[float],
    ys: Sequence[float],
    batches: FixedBatches,
    *,
    together: int | None = None,
    rows: Rows | None = None,
    check: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[NDArray[np.float64], int]:
    """Mean loss of every batch at every point, (len(ys), len(xs), batches), fp64, NaN where it is not finite; and how
    many points were evaluated together (the faster number, measured here, unless given)."""
    rows = rows or Rows(None, {})
    with plane, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # of vmap; `fastest` measures what matters
        together = rows.together or together or fastest(model, plane, list(xs), batches)
        rows.begin(together)
        for i, y in enumerate(ys):
            if i not in rows.done:
                check()
                say(f"row {len(rows.done) + 1} of {len(ys)}")
                plane.to_row(y)
                found = _row(model, plane, list(xs), batches, together, check).cpu().tolist()
                rows.keep(i, [[v if math.isfinite(v) else None for v in point] for point in found])
    return np.array([rows.done[i] for i in range(len(ys))], dtype=np.float64), together


def _row(
    model: nn.Module,
    plane: Plane,
    xs: list[float],
    batches: FixedBatches,
    together: int,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """(points, batches)."""
    if together == 1:
        found = []
        for x in xs:
            check()
            plane.move(x)
            found.append(batches.evaluate(model))
        return torch.stack(found)
    blocks = []
    for start in range(0, len(xs), together):
        check()
        blocks.append(_together(model, plane.stacked(xs[start : start + together]), batches))
    return torch.cat(blocks)


@torch.no_grad()
def _together(model: nn.Module, weights: dict[str, Tensor], batches: FixedBatches) -> Tensor:
    """Losses of stacked weights, (points, batches): one forward for all points of the stack."""

    def outputs(point: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = functional_call(model, point, (), inputs).logits
        return logits

    columns = []
    for inputs, labels in zip(batches.inputs, batches.labels, strict=True):
        logits = vmap(outputs, in_dims=(0, None))(weights, dict(inputs))
        columns.append(torch.stack([batches.losses(one, labels).double().mean() for one in logits]))
    return torch.stack(columns, dim=1)


def fastest(model: nn.Module, plane: Plane, xs: list[float], batches: FixedBatches) -> int:
    """How many points to evaluate together: 1, or the number of `_TRIED` that takes least time a point, where that is
    clearly less. On a CPU with batches of ordinary size it is 1; tiny models, and small batches on a GPU, gain."""
    one = FixedBatches(batches.inputs[:1], batches.labels[:1], batches.losses)
    best, least = 1, _WORTH_IT * _seconds(lambda: _row(model, plane, xs[:1], one, 1))
    for count in _TRIED:
        if count > len(xs) or not _fits(plane, count):
            break
        try:
            seconds = _seconds(lambda count=count: _row(model, plane, xs[:count], one, count)) / count  # type: ignore[misc]
        except (MemoryError, RuntimeError):  # no room, or an operation that can't be batched: one by one always goes
            break
        if seconds >= least:
            break
        best, least = count, seconds
    return best


def _seconds(work: Callable[[], Tensor]) -> float:
    """The shorter of two runs, after one to warm up."""
    work().cpu()
    times = []
    for _ in range(2):
        start = time.perf_counter()
        work().cpu()  # waits for the device
        times.append(time.perf_counter() - start)
    return min(times)


def _fits(plane: Plane, count: int) -> bool:
    """Whether the stacked weights take less than a quarter of the free memory."""
    free = torch.cuda.mem_get_info()[0] if plane.device.type == "cuda" else psutil.virtual_memory().available
    return 4 * count * plane.size * plane.dtype.itemsize < free


def _readable(path: Path) -> list[dict[str, Any]]:
    """The lines of a file up to one that was cut short."""
    lines: list[dict[str, Any]] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            lines.append(json.loads(line))
    except (OSError, ValueError):
        return lines
    return lines
