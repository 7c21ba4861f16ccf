"""A trajectory of two processes that share the weights and no folder: what the first one has counts for both."""

from __future__ import annotations

import multiprocessing
from multiprocessing.queues import Queue
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import tunewise
from contracts import models
from tunewise.models.sharded import shard
from tunewise.training.trajectory import TrajectoryCallback, snapshots


def _resume(rank: int, folder: Path, said: Queue[Any]) -> None:
    """Five steps of ten, two snapshots; then a resume at the fifth, with a folder of this process's own."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    model = tunewise.attach(models.make("bert"), "lora", rank=4, seed=3)
    shard(model, init_device_mesh("cpu", (2,)))
    args: Any = SimpleNamespace(process_index=rank, world_size=2, load_best_model_at_end=False)
    control: Any = None
    for steps in ((0, 5), (5, 10)):
        callback = TrajectoryCallback(folder / f"of-{rank}", 2)
        at: Any = SimpleNamespace(global_step=steps[0], max_steps=10, is_world_process_zero=rank == 0)
        callback.on_train_begin(args, at, control, model=model)
        at.global_step = steps[1]
        callback.on_step_end(args, at, control, model=model)
    dist.barrier()
    said.put(rank)
    dist.destroy_process_group()


def test_the_first_process_says_for_all_which_snapshots_there_are(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    said: Any = fork.Queue()
    both = [fork.Process(target=_resume, args=(rank, tmp_path, said)) for rank in range(2)]
    for one in both:
        one.start()
    try:
        assert {said.get(timeout=60), said.get(timeout=60)} == {0, 1}
        for one in both:
            one.join(60)
            assert one.exitcode == 0
    finally:
        for one in both:
            one.kill()
    kept = snapshots(tmp_path / "of-0")
    assert [one.step for one in kept] == [0, 5, 10]
    for one in kept:
        one.check()
        assert not any(value.numel() == 0 for value in one.tensors().values())
    assert not (tmp_path / "of-1").exists()
