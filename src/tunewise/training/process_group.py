"""The processes that train one model together, as `torchrun` or `accelerate launch` starts them; one alone otherwise.

All processes do the same in the same order, each with a copy of the model. Rank 0 alone decides and writes; the others
receive its results and its errors. With one process nothing here does anything.
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
from torch.utils.data import DataLoader

from tunewise.device import on_gpu
from tunewise.errors import SpecError, TunewiseError
from tunewise.store.folders import RunStore
from tunewise.training.events import INTERRUPTED_MESSAGE, Interrupted, Listener

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class ProcessGroup:
    """The place of this process among those that train one model."""

    rank: int = 0
    world_size: int = 1
    local_world_size: int | None = None
    """Processes on this machine; all of them unless given."""

    @property
    def is_rank_zero(self) -> bool:
        return self.rank == 0

    def on_rank_zero(self, work: Callable[[], _Result]) -> _Result:
        """Do the work on rank 0; all ranks return its result or raise its `TunewiseError` or `OSError`."""
        if self.world_size == 1:
            return work()
        answer: list[Any] = list(_try(work)) if self.is_rank_zero else [None, None]
        dist.broadcast_object_list(answer, src=0)
        result, error = answer
        if error is not None:
            raise _on_all_ranks(error)
        return cast(_Result, result)

    def on_every_rank(self, work: Callable[[], _Result]) -> _Result:
        """Do the work on each rank and return its own result; an error of any rank is raised by all."""
        if self.world_size == 1:
            return work()
        result, own = _try(work)
        errors: list[Any] = [None] * self.world_size
        dist.all_gather_object(errors, own)
        for rank, error in enumerate(errors):
            if error is not None:
                if rank and isinstance(error, TunewiseError):
                    error.args = (f"process {rank}: {error}",)
                raise _on_all_ranks(error)
        return cast(_Result, result)

    def sum(self, *values: float) -> list[float]:
        """The sum of each value over all ranks."""
        if self.world_size == 1:
            return list(values)
        device = "cuda" if on_gpu() else "cpu"
        total = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def wait(self) -> None:
        """Until all ranks have come here."""
        self.sum(0.0)

    def raise_if_stopped(self, listener: Listener) -> None:
        """Raise `Interrupted` on all ranks where the listener of any asked for a stop."""
        if self.sum(float(listener.stop_requested))[0]:
            raise _on_all_ranks(Interrupted(INTERRUPTED_MESSAGE))

    def stop_check(self, listener: Listener) -> Callable[[], None]:
        """What to call between batches: one rank of several must not stop by itself."""
        return listener.check if self.world_size == 1 else lambda: None

    @contextlib.contextmanager
    def lock_run(self, store: RunStore, run_id: str) -> Iterator[Path]:
        """The folder of a run, locked by rank 0 for all. Raises `RunLocked` on all ranks."""
        with contextlib.ExitStack() as stack:
            self.on_rank_zero(lambda: stack.enter_context(store.lock(run_id)) and None)
            yield store.folder(run_id)
            self.wait()  # until rank 0 has written

    def leave(self) -> None:
        """Close the group for good, with all of its threads."""
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
    """The group that this process was started in. Raises `SpecError` for an unsupported kind of launch.

    A group that is opened here is closed on every end that the user sees as one line. A process that ended inside it
    would be aborted now and then: threads of gloo release the tensors of the last operation while Python is shutting
    down. NCCL has no such threads and waits for all ranks, so after an error there the process just ends.
    """
    was_open = dist.is_initialized()
    process_group = _connect()
    opened = dist.is_initialized() and not was_open
    try:
        yield process_group
    except (TunewiseError, OSError) as error:
        if opened and dist.get_backend() == "gloo":
            cause: BaseException | None = error
            while cause is not None:  # frames hold the model, also those of the errors that came before
                traceback.clear_frames(cause.__traceback__)
                cause = cause.__context__
            with contextlib.suppress(RuntimeError):  # the first error is the one to report
                process_group.leave()
        raise
    if opened:
        process_group.leave()


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
    state = PartialState(cpu=not on_gpu())
    local = os.environ.get("LOCAL_WORLD_SIZE")
    return ProcessGroup(state.process_index, state.num_processes, local_world_size=int(local) if local else None)


def _try(work: Callable[[], _Result]) -> tuple[_Result | None, Exception | None]:
    try:
        return work(), None
    except (TunewiseError, OSError) as error:  # else the other ranks would wait for ever
        return None, error


def _on_all_ranks(error: Exception) -> Exception:
    if isinstance(error, TunewiseError):
        error.on_all_ranks = True
    return error


class BatchShares:
    """Indexes of this process's share of every batch: each `world_size`-th example of the batches, in their order, that
    one process would train on, the last and smaller one included."""

    def __init__(self, examples: int, batch_size: int, seed: int, process_group: ProcessGroup) -> None:
        self.examples, self.batch_size, self.process_group = examples, batch_size, process_group
        self.sampler = SeedableRandomSampler(range(examples), generator=torch.Generator(), data_seed=seed)

    def __len__(self) -> int:
        return -(-self.examples // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            # A rank without a share of the last batch computes an example that does not count.
            yield batch[self.process_group.rank :: self.process_group.world_size] or batch[:1]

    def set_epoch(self, epoch: int) -> None:
        """The epoch that is iterated over next."""
        self.sampler.set_epoch(epoch)

    def has_examples(self, number: int) -> bool:
        """Whether this process has a share of batch `number` of an epoch, from 0."""
        start = number * self.batch_size
        return min(self.batch_size, self.examples - start) > self.process_group.rank


class SharedBatchLoader(DataLoader[Any]):
    """A loader that passes the epoch on to `BatchShares`, as the Trainer expects."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
