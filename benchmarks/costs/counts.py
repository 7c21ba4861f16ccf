"""What a step costs that no clock has to measure: arithmetic, kernels, bytes. Exact, the same on every machine."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from costs.clock import Line
from tunewise.measures.cost.counters import Flops, saved_for_backward
from tunewise.methods.attachment import trainable_parameters
from tunewise.study.live_memory import LiveMemory


class Kernels(TorchDispatchMode):
    """Counts operators that compute something; views and other relabellings of memory are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or func in _FREE)
        return func(*args, **(kwargs or {}))


_FREE = {
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten._reshape_alias.default,
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.new_empty.default,
}


def counts(line: Line) -> dict[str, Any]:
    """FLOPs, kernels by phase, bytes kept for the backward, and the peak of a step over what stands before it.

    The line's own model is stepped, not the compiled one: a compiled graph has kernels of its own making.
    """
    line.model(**line.batch).loss.backward()  # what a first step sets up
    line.update()
    with Kernels() as forward:
        loss = line.model(**line.batch).loss
    with Kernels() as backward:
        loss.backward()
    del loss
    with Kernels() as update:
        line.update()
    with Flops() as flops:
        line.model(**line.batch).loss.backward()
    line.update()
    return {
        "trainable": trainable_parameters(line.model),
        "flops": flops.total,
        "kernels": {"forward": forward.count, "backward": backward.count, "update": update.count},
        "saved_bytes": saved_for_backward(line.model, line.batch),
        "peak_bytes": _peak(line),
    }


def _peak(line: Line) -> int:
    """Bytes above what is there between steps, at the worst moment of one: the allocator's on a device, else the
    storages alive as operators make and drop them."""
    if line.on_device:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        line.model(**line.batch).loss.backward()
        line.update()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with LiveMemory() as live:
        line.model(**line.batch).loss.backward()
        line.update()
    return live.peak
