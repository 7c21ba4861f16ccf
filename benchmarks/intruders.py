"""Time of counting intruder dimensions, against the plain way: two decompositions of every weight of every adapter.

    python benchmarks/intruders.py --out intruders.json

Two parts. *Shapes*: one weight at a time, rank 8. *Quickstart*: all methods and seeds of the quickstart on its model,
all their weights: the naive loop decomposes W0 and W0 + dW for each; ours decomposes W0 once for all, keeps it on
disk, and finds the top of W0 + dW by Lanczos' method in W0's basis (full fine-tuning: by the Gram matrix). The updates
have the size that the quickstart's have; their values hardly matter to the time.

Ways are interleaved, in random order, weight by weight, on the same matrices, and timed by the process's CPU time (on
one thread the time of a quiet machine); ratios are of the sums of one repetition. `difference` is the largest between
our |cos| and those of two fp64 decompositions.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunewise.catalog import get_method
from tunewise.measures._linalg.base_spectra import BaseSpectra
from tunewise.measures.intruders.compute import TOP_K, layer_intruders
from tunewise.measures.updates.folder import backbone_layers
from tunewise.measures.updates.layer import LayerUpdate
from tunewise.models.layers import find_targets, shape_of
from tunewise.quiet import quiet_libraries
from tunewise.spec import StudySpec, load_yaml, parse
from tunewise.store.environment import environment
from tunewise.tasks.build import build_task

PRESET = Path(__file__).parents[1] / "src" / "tunewise" / "presets" / "quickstart.yaml"
SHAPES = ((384, 384), (768, 768), (3072, 768), (768, 3072))
SIZE = 0.3
"""||dW||_F / ||W0||_F of an adapter; a tenth of it for full fine-tuning."""


def main() -> None:
    """Command line."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    flags.add_argument("--repetitions", type=int, default=5)
    flags.add_argument("--skip-quickstart", action="store_true", help="the shapes alone")
    flags.add_argument("--out", type=Path)
    given = flags.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "device": environment().device,
        "versions": environment().versions,
        "clock": "CPU time of the process, one thread",
        "repetitions": given.repetitions,
        "top_k": TOP_K,
        "shapes": [shape(*s, given.repetitions) for s in SHAPES],
    }
    if not given.skip_quickstart:
        found["quickstart"] = quickstart(given.repetitions)
    text = json.dumps(found, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


def shape(rows: int, columns: int, repetitions: int) -> dict[str, Any]:
    """One weight with a rank-8 update; our way with W0's decomposition at hand, and with it still to be made."""
    base = nn.Linear(columns, rows, bias=False)
    update = adapter_like("layer", base, 8, seed=0)
    at_hand = BaseSpectra(None).of(update.base)
    ways: dict[str, Callable[[], list[float]]] = {
        "two SVDs, fp32": lambda: plain(update, torch.float32),
        "two SVDs, fp64": lambda: plain(update, torch.float64),
        "ours": lambda: list(layer_intruders(update, at_hand).cosines),
        "ours, W0 decomposed too": lambda: list(layer_intruders(update, BaseSpectra(None).of(update.base)).cosines),
    }
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repetitions):
        for name in shuffled(ways, number):
            times[name].append(timed(ways[name])[0])
    exact, own = plain(update, torch.float64), layer_intruders(update, at_hand)
    return {
        "shape": [rows, columns],
        "seconds": {name: statistics.median(t) for name, t in times.items()},
        "faster": {name: spread(times[name], times["ours"]) for name in ways if name.startswith("two")},
        "solver": own.solver,
        "difference": max(abs(a - b) for a, b in zip(exact, own.cosines)),
    }


def quickstart(repetitions: int) -> dict[str, Any]:
    """All weights of all methods and seeds of the quickstart: of the adapters, of full fine-tuning, and together."""
    content = {k: v for k, v in load_yaml(PRESET).items() if k not in ("title", "out", "costs")}
    spec = parse(StudySpec, content)
    model = build_task(spec.runs()[0]).load_model(0)
    groups: dict[str, list[LayerUpdate]] = {"adapters": [], "full fine-tuning": []}
    for one in spec.runs():
        kind = "full fine-tuning" if one.method.name == "fft" else "adapters"
        groups[kind] += updates_like(model, one.method.name, one.method.rank, one.method.targets, one.seed)
    return {
        "methods": [m.name for m in spec.methods],
        "seeds": spec.seeds,
        **{kind: group(updates, repetitions) for kind, updates in groups.items()},
    }


def group(updates: list[LayerUpdate], repetitions: int) -> dict[str, Any]:
    """The naive loop over updates, ours with nothing on disk to start from, and ours with all of W0 there."""
    sums: dict[str, list[float]] = defaultdict(list)
    worst, decomposed = 0.0, 0
    for number in range(repetitions):
        total = dict.fromkeys(("naive loop", "ours, cold", "ours, kept"), 0.0)
        with tempfile.TemporaryDirectory() as folder:
            cold, kept = BaseSpectra(Path(folder)), BaseSpectra(Path(folder))
            for place, update in enumerate(updates):
                for name in shuffled(("naive loop", "ours, cold"), number * len(updates) + place):
                    if name == "naive loop":
                        total[name] += timed(partial(plain, update, torch.float32))[0]
                    else:  # the first to meet a weight pays for its decomposition, the others read it
                        total[name] += timed(partial(ours, update, cold))[0]
                seconds, own = timed(partial(ours, update, kept))
                total["ours, kept"] += seconds
                if number == 0:
                    exact = plain(update, torch.float64)
                    worst = max(worst, *(abs(a - b) for a, b in zip(exact, own)))
            decomposed = cold.computed
        for name, seconds in total.items():
            sums[name].append(seconds)
    return {
        "weights": len(updates),
        "decomposed": decomposed,
        "seconds": {name: statistics.median(t) for name, t in sums.items()},
        "faster": {name: spread(sums["naive loop"], sums[name]) for name in ("ours, cold", "ours, kept")},
        "difference": worst,
    }


def updates_like(model: nn.Module, method: str, rank: int, targets: Any, seed: int) -> list[LayerUpdate]:
    """What such a method's updates look like to the measure: factors, columns, or dense; none for `head`."""
    row = get_method(method)
    layers = backbone_layers(model)
    if row.trained == "head":
        return []
    if row.trained == "all":
        return [dense_like(name, layer, 1000 * seed + i) for i, (name, layer) in enumerate(layers.items())]
    found = [t.name for t in find_targets(model, targets)]
    return [
        adapter_like(name, layers[name], rank, seed, columns=row.selects_columns) for seed, name in enumerate(found)
    ]


def adapter_like(name: str, base: nn.Module, rank: int, seed: int, columns: bool = False) -> LayerUpdate:
    """A random rank-r update of the size `SIZE`."""
    rows, width = shape_of(base)
    draw = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, rank, generator=draw)
    right = (
        torch.eye(width)[torch.randperm(width, generator=draw)[:rank]]
        if columns
        else torch.randn(rank, width, generator=draw)
    )
    update = LayerUpdate.of_factors(name, base, left, right)
    return LayerUpdate.of_factors(
        name, base, left * (SIZE * float(update.base.norm()) / update.frobenius_norm()), right
    )


def dense_like(name: str, base: nn.Module, seed: int) -> LayerUpdate:
    """A random dense update, a tenth as large."""
    rows, width = shape_of(base)
    noise = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    weight: Any = base.weight
    noise *= 0.1 * SIZE * float(weight.detach().norm() / noise.norm())
    return LayerUpdate.of_dense(name, base, lambda: noise)


@torch.no_grad()
def plain(update: LayerUpdate, dtype: torch.dtype) -> list[float]:
    """The definition, letter for letter."""
    w0, dw = update.base.to(dtype), update.delta().to(dtype)
    u0: Tensor = torch.linalg.svd(w0, full_matrices=False)[0]
    u1: Tensor = torch.linalg.svd(w0 + dw, full_matrices=False)[0]
    return (u1[:, :TOP_K].T @ u0).abs().amax(dim=1).tolist()


def ours(update: LayerUpdate, spectra: BaseSpectra) -> list[float]:
    return list(layer_intruders(update, spectra.of(update.base)).cosines)


def timed(way: Callable[[], list[float]]) -> tuple[float, list[float]]:
    begun = time.process_time()
    result = way()
    return time.process_time() - begun, result


def shuffled(names: Any, seed: int) -> list[str]:
    order = list(names)
    random.Random(seed).shuffle(order)
    return order


def spread(slow: list[float], fast: list[float]) -> dict[str, float]:
    """Ratios repetition by repetition: median, lowest, highest."""
    ratios = [a / b for a, b in zip(slow, fast)]
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


if __name__ == "__main__":
    main()
