"""Time of a 51 x 51 loss landscape on MiniLM, against the plain ways of going from point to point.

    python benchmarks/landscape.py --out landscape.json

A sub-grid is timed, the ways interleaved point by point, and the whole grid is extrapolated from the median point:
2,601 points at that time each. Every way evaluates the same batches of the quickstart's data.

- ours: weights in one buffer, each point one pass over it from the row's anchor, batches tokenised once;
- new tensors: w + x d1 + y d2 as new tensors for every parameter, batches padded anew (the code of 1712.09913);
- flatten and copy: all parameters to one vector, moved, and back;
- reload: the state dict read from disk, moved, loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from tunewise.measures._device import device, synchronize
from tunewise.measures._weight_space.batches import FixedBatches
from tunewise.measures._weight_space.directions import random_direction, weights_of
from tunewise.measures._weight_space.plane import Plane
from tunewise.quiet import quiet_libraries
from tunewise.spec import StudySpec, load_yaml, parse
from tunewise.store.environment import environment
from tunewise.tasks.build import build_task

PRESET = Path(__file__).parents[1] / "src" / "tunewise" / "presets" / "quickstart.yaml"


def main() -> None:
    """Command line."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    flags.add_argument("--grid", type=int, default=51, help="points a side of the extrapolated grid")
    flags.add_argument("--points", type=int, default=9, help="points that are timed of every way")
    flags.add_argument("--batches", type=int, default=4)
    flags.add_argument("--batch-size", type=int, default=16)
    flags.add_argument("--out", type=Path)
    given = flags.parse_args()
    quiet_libraries()
    found = measure(given.grid, given.points, given.batches, given.batch_size)
    text = json.dumps(found, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


def measure(grid: int, points: int, count: int, size: int) -> dict[str, Any]:
    """Medians of every way, and what they come to for the whole grid."""
    content = {k: v for k, v in load_yaml(PRESET).items() if k not in ("title", "out", "costs")}
    task = build_task(parse(StudySpec, content).runs()[0])
    model = task.load_model(0).eval().requires_grad_(False).to(device())
    rows = [task.train[i * size : (i + 1) * size] for i in range(count)]
    weights = weights_of(model)
    first, second = random_direction(weights, 0, 0), random_direction(weights, 0, 1)
    batches = fixed(task, rows)
    plane = Plane({name: weight.parameter for name, weight in weights.items()}, first, second)
    axis = np.linspace(-0.5, 0.5, points).tolist()
    with tempfile.TemporaryDirectory() as folder:
        plain = plain_ways(model, first, second, Path(folder) / "model.safetensors")
        times: dict[str, list[float]] = {name: [] for name in ("ours", *plain)}
        moves: dict[str, list[float]] = {name: [] for name in ("ours", *plain)}
        before = {name: p.clone() for name, p in model.named_parameters()}
        for x in [axis[0], *axis]:  # the first point warms up
            with plane:
                plane.to_row(0.1)
                timed(times["ours"], partial(plane.move, x), lambda: batches.evaluate(model))
                timed(moves["ours"], partial(plane.move, x))
            for name, move in plain.items():
                timed(times[name], partial(move, x, 0.1), lambda: fixed(task, rows).evaluate(model))
                timed(moves[name], partial(move, x, 0.1))
            for name, p in model.named_parameters():
                p.data.copy_(before[name])
    per_point = {name: statistics.median(values[1:]) for name, values in times.items()}
    versions = environment()
    return {
        "device": versions.device,
        "versions": versions.versions,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "model": content["model"]["path"],
        "moved_weights": plane.size,
        "batches": count,
        "batch_size": size,
        "timed_points": points,
        "seconds_a_point": per_point,
        "seconds_of_the_move_alone": {name: statistics.median(values[1:]) for name, values in moves.items()},
        "grid": grid,
        "hours_of_the_grid_extrapolated": {name: grid**2 * value / 3600 for name, value in per_point.items()},
        "times_faster_than": {name: per_point[name] / per_point["ours"] for name in plain},
    }


def plain_ways(
    model: nn.Module, first: dict[str, Tensor], second: dict[str, Tensor], file: Path
) -> dict[str, Callable[[float, float], None]]:
    """Functions that put the model at (x, y), each from a copy of its weights of its own."""
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    zeros = {name: torch.zeros_like(p) for name, p in own.items()}
    along, across = {**zeros, **first}, {**zeros, **second}
    save_file({name: p.cpu().contiguous() for name, p in model.state_dict().items()}, file)
    flat, d1, d2 = (parameters_to_vector(list(found.values())) for found in (own, along, across))

    def new_tensors(x: float, y: float) -> None:
        for name, p in model.named_parameters():
            p.data = own[name] + (along[name] * x + across[name] * y)

    def flatten_and_copy(x: float, y: float) -> None:
        parameters_to_vector(model.parameters())
        vector_to_parameters(flat + x * d1 + y * d2, model.parameters())

    def reload(x: float, y: float) -> None:
        state = load_file(file, device=str(flat.device))
        for name in own:
            state[name] = state[name] + x * along[name] + y * across[name]
        model.load_state_dict(state)

    return {"new tensors": new_tensors, "flatten and copy": flatten_and_copy, "reload": reload}


def fixed(task: Any, rows: list[Any]) -> FixedBatches:
    """The batches, padded and put on the device."""
    made = [{key: value.to(device()) for key, value in task.collate(examples).items()} for examples in rows]
    return FixedBatches(made, [batch.pop("labels") for batch in made], task.losses)


def timed(into: list[float], *work: Callable[[], Any]) -> None:
    """Append the seconds that all of `work` takes, the device's queue emptied before and after."""
    synchronize()
    start = time.perf_counter()
    for one in work:
        one()
    synchronize()
    into.append(time.perf_counter() - start)


if __name__ == "__main__":
    main()
