"""What caching the frozen prefix saves: the step of LoRA on the last blocks alone, cached against uncached.

    python benchmarks/prefix.py --out benchmarks/results/prefix.json

MiniLM's shape with random weights, no dropout, rank 8 on query and value of the last k of 6 blocks, 16 x 64 tokens.
CPU time of one thread, in turn within rounds; FLOPs are torch's own count and need no quiet machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from packed import Shape, batches_of, network, seconds, update

from tunewise.measures.cost.probe import median_interval
from tunewise.measures.cost.flops import Flops
from tunewise.methods.attach import attach
from tunewise.quiet import quiet_libraries
from tunewise.store.environment import environment
from tunewise.training.optimizers import optimizer
from tunewise.training.prefix import STATES, install_prefix, prefix_depth, prefix_states, trace_prefix


def step_of(last: int, shape: Shape, cached: bool) -> Callable[[], None]:
    """A training step with adapters in the last blocks."""
    device = torch.device("cpu")
    base, batch = copy.deepcopy(network(0.0)), next(batches_of(shape, 0, device))
    if cached:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        depth = 6 - last
        base.eval()
        states = prefix_states(base, depth, inputs)
        install_prefix(base, trace_prefix(base, depth, inputs))
        batch = {**batch, STATES: states}
    model = attach(base, "lora", rank=8, targets="qv", layers=f"last {last}").train()
    assert prefix_depth(model) == 6 - last
    adamw = optimizer(model, lr=1e-3)

    def step() -> None:
        model(**batch).loss.backward()
        update(model, adamw)

    return step


def measure(last: int, shape: Shape, rounds: int) -> dict[str, Any]:
    """Ratio of step times, cached to uncached, with its interval, and of FLOPs."""
    lines = {cached: step_of(last, shape, cached) for cached in (False, True)}
    flops = {}
    for cached, step in lines.items():
        with Flops() as counter:
            step()
        flops[cached] = counter.total
    times: dict[bool, list[float]] = {False: [], True: []}
    order = random.Random(0)
    for _ in range(rounds):
        for cached in order.sample([False, True], 2):
            times[cached].append(seconds(lines[cached], torch.device("cpu")))
    ratio, low, high = median_interval([a / b for a, b in zip(times[True], times[False], strict=True)])
    return {"last": last, "time": ratio, "low": low, "high": high, "flops": flops[True] / flops[False]}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    rows = []
    for last in (1, 2, 3):
        rows.append(row := measure(last, (16, 64, 64), given.rounds))
        print(
            f"last {last} of 6 blocks: x {row['time']:.2f} ({row['low']:.2f} to {row['high']:.2f}) of the uncached "
            f"step's time, {row['flops']:.2f} of its FLOPs",
            flush=True,
        )
    if given.out:
        record = {"environment": environment().model_dump(), "load": os.getloadavg(), "batch": [16, 64], "rows": rows}
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
