"""The processes that train one model together: started by `torchrun` or `accelerate launch`, or one alone.

Every process does the same in the same order; the first one alone writes. What it finds out or decides (which
checkpoint, who has the run) the others are told. With one process nothing here does anything. Each process has a copy
of the model.
"""

from __future__ import annotations

import contextlib
import gc
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor
from torch.utils.data import DataLoader

from tunewise.errors import SpecError, TunewiseError
from tunewise.store.folders import RunStore
from tunewise.training.events import INTERRUPTED_MESSAGE, Interrupted, Listener

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class ProcessGroup:
    """This process's place among all."""

    rank: int = 0
    world_size: int = 1
    local_world_size: int | None = None
    """How many of them are on this machine; all of them unless known."""

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def on_rank_zero(self, work: Callable[[], _Result]) -> _Result:
        """What the first process finds, for all; a `TunewiseError` of its own is raised by all."""
        if self.world_size == 1:
            return work()
        told: list[Any] = [None, None]
        if self.is_rank_zero:
            told = list(_tried(work))
        dist.broadcast_object_list(told, src=0)
        found, error = told
        if error is not None:
            raise _of_all(error)
        return cast(_Result, found)

    def on_every_rank(self, work: Callable[[], _Result]) -> _Result:
        """What each process finds, for itself; a `TunewiseError` of any is raised by all."""
        if self.world_size == 1:
            return work()
        found, own = _tried(work)
        errors: list[Any] = [None] * self.world_size
        dist.all_gather_object(errors, own)
        for rank, error in enumerate(errors):
            if error is not None:
                if rank and isinstance(error, TunewiseError):
                    error.args = (f"process {rank}: {error}",)
                raise _of_all(error)
        return cast(_Result, found)

    def sum(self, *values: float) -> list[float]:
        """The sum of each value over all processes."""
        if self.world_size == 1:
            return list(values)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        total = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def any(self, flag: bool) -> bool:
        """Whether it holds anywhere."""
        return self.sum(float(flag))[0] > 0

    def describe(self) -> list[str]:
        """For the record: nothing of one process."""
        if self.world_size == 1:
            return []
        return [f"trained by {self.world_size} processes, each with a share of every batch"]

    def raise_if_stopped(self, listener: Listener) -> None:
        """Raise `Interrupted` in all where one is to stop."""
        if self.any(listener.stop_requested):
            raise _of_all(Interrupted(INTERRUPTED_MESSAGE))

    def batch_check(self, listener: Listener) -> Callable[[], None]:
        """The listener's own check where it is the only one; one of several may not stop by itself."""
        return listener.check if self.world_size == 1 else lambda: None

    @contextlib.contextmanager
    def lock_run(self, store: RunStore, run_id: str) -> Iterator[Path]:
        """The run's lock, held by the first process for all. Raises `RunLocked` in all."""
        with contextlib.ExitStack() as held:
            self.on_rank_zero(lambda: held.enter_context(store.lock(run_id)) and None)
            yield store.folder(run_id)
            self.on_rank_zero(lambda: None)  # nobody leaves before the first has written

    def leave(self) -> None:
        """Part from the others, for good: nothing of the group is left, its threads least of all."""
        gc.collect()  # models hold the group, and themselves
        dist.destroy_process_group()


SINGLE_PROCESS = ProcessGroup()

_UNSUPPORTED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}


@contextlib.contextmanager
def join_process_group() -> Iterator[ProcessGroup]:
    """This process among those that it was started with, for as long as they work together. Raises `SpecError` for a
    way of sharing that runs have not.

    A group made here is left on any end that the user is told of in a line. A process that ended within it would be
    aborted now and then: gloo's threads let go of a last operation's tensors when Python is already shutting down. NCCL
    has no such threads, and waits for all: there, and after other errors, who met an error just ends.
    """
    others = dist.is_initialized()
    process_group = _connect()
    ours = dist.is_initialized() and not others
    try:
        yield process_group
    except (TunewiseError, OSError) as error:
        if ours and dist.get_backend() == "gloo":
            met: BaseException | None = error
            while met is not None:  # frames hold the model, also those of what an error was raised from
                traceback.clear_frames(met.__traceback__)
                met = met.__context__
            with contextlib.suppress(RuntimeError):  # the error is what is to be heard of
                process_group.leave()
        raise
    if ours:
        process_group.leave()


def _tried(work: Callable[[], _Result]) -> tuple[_Result | None, Exception | None]:
    try:
        return work(), None
    except (TunewiseError, OSError) as error:  # the others would wait for it
        return None, error


def _of_all(error: Exception) -> Exception:
    if isinstance(error, TunewiseError):
        error.of_all = True
    return error


def _connect() -> ProcessGroup:
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision != "no":
        raise SpecError(f"--mixed_precision {precision}: runs compute in the model's own precision; launch with 'no'")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return SINGLE_PROCESS
    for key, name in _UNSUPPORTED.items():
        if os.environ.get(key, "false").lower() in ("1", "true"):
            raise SpecError(
                f"{name} is not supported; launch with data parallelism, a copy of the model in each process (torchrun "
                "--nproc-per-node 2, or accelerate launch --multi_gpu)"
            )
    state = PartialState(cpu=not torch.cuda.is_available())
    local = os.environ.get("LOCAL_WORLD_SIZE")
    return ProcessGroup(state.process_index, state.num_processes, local_world_size=int(local) if local else None)


class BatchShares:
    """Batches of indexes: of every batch that one process would train on, this process's share, every `world`-th
    example. The batches are those of one process, in its order, to the last and smaller one."""

    def __init__(self, examples: int, batch_size: int, seed: int, process_group: ProcessGroup) -> None:
        self.examples, self.batch_size, self.process_group = examples, batch_size, process_group
        self.sampler = SeedableRandomSampler(range(examples), generator=torch.Generator(), data_seed=seed)

    def __len__(self) -> int:
        return -(-self.examples // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            # Who has no share of a last batch computes on an example that does not count.
            yield batch[self.process_group.rank :: self.process_group.world_size] or batch[:1]

    def set_epoch(self, epoch: int) -> None:
        """Whose order is to come next."""
        self.sampler.set_epoch(epoch)

    def counts(self, step: int) -> bool:
        """Whether this process has a share of the batch of optimizer step `step` (from 0) at all."""
        start = (step % len(self)) * self.batch_size
        return min(self.batch_size, self.examples - start) > self.process_group.rank


class SharedBatchLoader(DataLoader[Any]):
    """A loader whose order of an epoch can be set, as the Trainer does."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


def scale_to_batch(loss: Tensor, units: float, process_group: ProcessGroup) -> Tensor:
    """A share's mean loss, scaled so that the mean over processes (what their gradients are averaged to) is the mean
    over the whole batch. `units`: examples or target tokens of the share."""
    (total,) = process_group.sum(units)
    return loss * (units * process_group.world_size / total)
