"""Energy, where the machine counts it: NVIDIA's own counter for a GPU, the package counters (RAPL) for a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

POWERCAP = Path("/sys/class/powercap")


class Meter(Protocol):
    """A counter of joules since some moment; only differences mean something."""

    source: str

    def joules(self) -> float: ...


class Rapl:
    """Linux's counters of the CPU packages (`intel-rapl:N`; AMD's are there under the same name), all added up. What
    else the machine does is counted too."""

    source = "CPU package counters (RAPL)"

    def __init__(self, packages: list[Path]) -> None:
        self._files = [package / "energy_uj" for package in packages]
        self._ranges = [int((package / "max_energy_range_uj").read_text()) for package in packages]
        self._last = [int(file.read_text()) for file in self._files]
        self._total = 0

    @classmethod
    def find(cls, root: Path = POWERCAP) -> Rapl | None:
        """None where there are no counters, or they may not be read (most systems keep them for root)."""
        packages = sorted(p for p in root.glob("intel-rapl:*") if p.name.count(":") == 1)
        try:
            return cls(packages) if packages else None
        except (OSError, ValueError):
            return None

    def joules(self) -> float:
        for i, file in enumerate(self._files):
            now = int(file.read_text())
            moved = now - self._last[i]
            self._total += moved if moved >= 0 else moved + self._ranges[i]  # the counter went round
            self._last[i] = now
        return self._total / 1e6


class Nvml:
    """The GPU's own counter (Volta and newer)."""

    source = "GPU counter (NVML)"

    def __init__(self, handle: object, read: Callable[[object], int]) -> None:
        self._handle, self._read = handle, read

    @classmethod
    def find(cls) -> Nvml | None:
        """None without a GPU, without the `nvidia-ml-py` package, or where the GPU keeps no count."""
        if not torch.cuda.is_available():
            return None
        try:
            import pynvml  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            # By its UUID: CUDA_VISIBLE_DEVICES may have renumbered the devices.
            uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except pynvml.NVMLError:
            return None
        return cls(handle, pynvml.nvmlDeviceGetTotalEnergyConsumption)

    def joules(self) -> float:
        return self._read(self._handle) / 1e3


def find_meter() -> Meter | None:
    """The counter of what the work runs on; None where the machine keeps none that may be read."""
    return Nvml.find() if torch.cuda.is_available() else Rapl.find()


def joules_a_step(
    step: Callable[[], None], meter: Meter, *, seconds: float = 1.0, synchronize: Callable[[], None]
) -> float:
    """Mean energy of `step`, over as many as fill `seconds`: the counters move in jumps of up to a tenth of one."""
    step()
    synchronize()
    count, begun, start = 0, time.monotonic(), meter.joules()
    while count < 3 or time.monotonic() - begun < seconds:
        step()
        synchronize()
        count += 1
    return (meter.joules() - start) / count
