"""Run twice side by side: `python two_processes.py RANK STORE RESULT`: DistributedDataParallel over gloo on one machine.

Each rank takes half of every batch. Rank 0 writes the losses and the final adapter of every method it is given.
"""

from __future__ import annotations

import gc
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import tunewise

models = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "contracts" / "models.py")))
METHODS = ["cla", "r-c3la", "paca", "cola"]


def train(name: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Four steps, with a restart in the middle for a chain; the final state_dict."""
    model = tunewise.attach(models.make("bert"), name, rank=4, seed=3)
    wrapped: Any = DistributedDataParallel(model) if world > 1 else model
    optimizer = tunewise.optimizer(model, lr=1e-2)
    for step in range(4):
        if step == 2 and tunewise.CATALOG[name].chain is not None:
            tunewise.restart(wrapped, optimizer)
        whole = models.batch("bert", rows=8, seed=step)
        share = {key: value[rank::world] for key, value in whole.items()}
        wrapped(**share).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {key: value.clone() for key, value in model.state_dict().items()}


def main(rank: int, store: str, result: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {name: train(name, rank, 2) for name in METHODS}
    gc.collect()  # models hold the group, whose threads abort a process that ends with them
    dist.destroy_process_group()
    if rank == 0:
        torch.save(found, result)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
