"""How many runs there is room for side by side, by the cores and GPUs that each takes."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal

_ROUNDING = 1e-9
"""3 runs of a third of a GPU each fit one."""


@dataclass(frozen=True)
class RayOptions:
    """Where, and how much of a machine a run takes."""

    address: str | None = None
    """Of a cluster to join ('auto', 'host:6379', 'ray://host:10001'); None starts a local Ray."""
    cpus: float = 1.0
    gpus: float | None = None
    """A part of one (0.5), or several; None: one where the cluster has any."""
    retries: int = 3
    """How often a run is done again whose worker or node died."""


@dataclass(frozen=True)
class SideBySide:
    """Runs at once, and how many of them share one memory: a GPU's where they are on GPUs, else the machine's."""

    runs: int = 1
    sharing: int = 1


def fits(cpus: float, gpus: float, run_cpus: float, run_gpus: float) -> int:
    """Runs that a node with these cores and GPUs does at once. A part of a GPU is a part of one: two GPUs have room for
    four runs of 0.4 each, not five."""
    rooms = [math.floor(cpus / run_cpus + _ROUNDING)] if run_cpus else []
    if 0 < run_gpus < 1:
        rooms.append(math.floor(gpus) * math.floor(1 / run_gpus + _ROUNDING))
    elif run_gpus:
        rooms.append(math.floor(gpus / run_gpus + _ROUNDING))
    return min(rooms, default=1)


def side_by_side(
    on: Literal["local", "ray"], ray: RayOptions | None, runs: int, jobs: int | None = None
) -> SideBySide | None:
    """What of `runs` runs is done at once on this machine, in `jobs` processes or by Ray; None where it is for a
    cluster's nodes, which are not known before it is joined."""
    import torch

    if on == "local":
        at_once = max(1, min(runs, jobs or 1))
        return SideBySide(at_once, at_once)  # processes take the first GPU, where there is one
    if ray is not None and ray.address is not None:
        return None
    devices = torch.cuda.device_count()
    share = 1.0 if ray is None or ray.gpus is None else ray.gpus
    share = share if devices else 0.0
    cpus = 1.0 if ray is None else ray.cpus
    at_once = max(1, min(runs, fits(os.cpu_count() or 1, devices, cpus, share)))
    if not share:  # on CPUs; or, where there are GPUs, all on the first of them
        return SideBySide(at_once, at_once)
    return SideBySide(at_once, min(at_once, max(1, math.floor(1 / share + _ROUNDING))))
