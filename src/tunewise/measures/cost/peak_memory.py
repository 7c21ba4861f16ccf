"""Peak memory of a method: of a fresh process on a CPU, of the allocator on a device.

Each method runs in a new process, forked from one that has only the libraries loaded. On a CPU under glibc that process
returns freed blocks at once (`give_back_freed_blocks`), so that its peak is what the method needs, and the same each
time. With glibc's default settings freed blocks below 32 MB may stay with the process: up to 1.8 times this was seen.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

import psutil
import torch
from torch import Tensor

from tunewise.device import on_gpu
from tunewise.measures._device import device
from tunewise.measures.cost.stepping import WARM_UP, probe_batch, stepper
from tunewise.spec import StudySpec
from tunewise.tasks.contract import Task
from tunewise.training.build import ONE_STEP_SAMPLES

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of `mallopt`, as malloc.h has them."""


def peak_memory(
    spec: StudySpec, task: Task, labels: list[str], check: Callable[[], None] = lambda: None
) -> dict[str, tuple[int, int]]:
    """{label: (peak bytes of the steps, bytes before)}; a method is left out if its process died."""
    batch = probe_batch(spec, task)
    task = task.first_examples(ONE_STEP_SAMPLES)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tunewise.measures.cost.quietly", "tunewise.measures.cost.peak_memory"])
    threads = torch.get_num_threads()
    peaks: dict[str, tuple[int, int]] = {}
    for label in labels:
        check()
        receive, send = context.Pipe(duplex=False)
        child = context.Process(
            target=_measure_peak, args=(spec.model_dump_json(), task, batch, label, threads, send), daemon=True
        )
        with _no_main():
            child.start()
        send.close()
        with contextlib.suppress(EOFError):  # the child ran out of memory
            peaks[label] = receive.recv()
        child.join()
    return peaks


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """Hide `__main__`, which children would run again: a user's script may have no `if __name__ == "__main__"`."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def give_back_freed_blocks(from_bytes: int = 2**18) -> None:
    """Return freed blocks of this size to the system at once (glibc only); slow, for measuring memory alone."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none, and gives large blocks back anyway
        mallopt(_MMAP_THRESHOLD, from_bytes)
        mallopt(_TRIM_THRESHOLD, from_bytes)


def _measure_peak(
    content: str, task: Task, batch: dict[str, Tensor], label: str, threads: int, send: Connection
) -> None:
    give_back_freed_blocks()
    torch.set_num_threads(threads)
    spec = StudySpec.model_validate_json(content)
    one = stepper(label, spec, task, {key: value.to(device()) for key, value in batch.items()})
    on_device = on_gpu()
    if on_device:
        base = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        base = psutil.Process().memory_info().rss
        _reset_peak()
    for _ in range(WARM_UP):
        one.step()
    peak = torch.cuda.max_memory_allocated() if on_device else _peak_rss()
    send.send((max(peak, base), base))
    send.close()


def _reset_peak() -> None:
    """Linux: forget the peak of loading; elsewhere it stays in."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="ascii")


def _peak_rss() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
