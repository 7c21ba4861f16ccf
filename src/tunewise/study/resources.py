"""Whether runs will fit memory and disk, asked before the first of them starts; if not, what would make them fit."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import psutil
import torch

from tunewise.errors import InsufficientResources, ModelError
from tunewise.models.load import load_config
from tunewise.spec import ExecutionOptions, MethodSpec, ModelSpec
from tunewise.store.files import size
from tunewise.store.folders import RunStore
from tunewise.study.executors.ray import fits
from tunewise.study.forecast import MethodForecast, forecast_methods
from tunewise.study.forecast_step import equivalent_method
from tunewise.study.plan import Plan, PlannedRun
from tunewise.study.policies.rates import apply_known_rates
from tunewise.text_format import pluralize
from tunewise.training.process_group import SINGLE_PROCESS, ProcessGroup

_HISTORY = 150
"""Bytes of a step's line in the history, about."""
_LEAST_LENGTH = 16


@dataclass(frozen=True)
class SideBySide:
    """Runs at once, and how many of them share one memory: a GPU's where they are on GPUs, else the machine's. 0 where
    they are for the nodes of a cluster, which are not known before it is joined."""

    runs: int = 1
    sharing: int = 1


def side_by_side(options: ExecutionOptions, runs: int) -> SideBySide:
    """What of `runs` runs is done at once on this machine."""
    if options.executor_name != "ray":
        at_once = max(1, min(runs, options.jobs or 1))
        return SideBySide(at_once, at_once)  # processes take the first GPU, where there is one
    ray = options.ray
    if ray.address is not None:
        return SideBySide(1, 0)
    devices = torch.cuda.device_count()
    share = (1.0 if ray.gpus_per_run is None else ray.gpus_per_run) if devices else 0.0
    at_once = max(1, min(runs, fits(os.cpu_count() or 1, devices, ray.cpus_per_run, share)))
    if not share:  # on CPUs; or, where there are GPUs, all on the first of them
        return SideBySide(at_once, at_once)
    return SideBySide(at_once, min(at_once, max(1, fits(1, 1, 0, share))))


def check_plan(plan: Plan, store: RunStore, options: ExecutionOptions) -> None:
    """Raises `InsufficientResources` as `check_resources` does, for the runs of a plan that are still to be done."""
    plan = apply_known_rates(plan, store)
    trials = 0 if plan.spec.tuning is None else plan.spec.tuning.trials * len(plan.rows)
    check_resources(plan.todo, store.root, side_by_side(options, max(len(plan.todo), trials)))


def check_resources(
    runs: Sequence[PlannedRun],
    out: Path,
    at_once: SideBySide = SideBySide(),
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> None:
    """Raises `InsufficientResources`, one line with what would make it fit, where these runs need more memory or disk
    than there is now. `process_group`: the processes that train each run together. Says nothing where no forecast can
    be made."""
    forecasts = _Forecasts(process_group)
    for problem in (_check_memory(runs, forecasts, at_once.sharing), _check_disk(runs, forecasts, out, at_once.runs)):
        if problem:
            raise InsufficientResources(f"{problem}; --force (force=True) starts all the same")


@dataclass(frozen=True)
class _Changes:
    """Settings to try in place of a run's own."""

    batch: int | None = None
    length: int | None = None
    rank: int | None = None
    targets: str | None = None
    process_group: ProcessGroup | None = None


class _Forecasts:
    """One forecast for all runs whose step is the same; None where there can be none."""

    def __init__(self, process_group: ProcessGroup) -> None:
        self.process_group = process_group
        self._cache: dict[str, MethodForecast | None] = {}

    def of(self, run: PlannedRun, batch: int | None = None, changes: _Changes = _Changes()) -> MethodForecast | None:
        """At `batch` examples, the run's own unless given."""
        spec = run.spec
        changed = {"rank": changes.rank, "targets": changes.targets}
        method = spec.method.model_copy(
            update={"links": spec.links, "restart_every": None, **{k: v for k, v in changed.items() if v is not None}}
        )
        batch = batch or spec.training.batch_size
        length = changes.length or run.length
        stand_in = equivalent_method(method).model_dump_json()
        key = f"{spec.model} {run.head} {stand_in} {method.links} {method.name} {batch} {length}"
        if key not in self._cache:
            self._cache[key] = _forecast(run, method, batch, length)
        return self._cache[key]

    def memory(self, run: PlannedRun, changes: _Changes = _Changes()) -> int | None:
        """Bytes that one process takes at its worst moment."""
        group = changes.process_group or self.process_group
        forecast = self.of(run, math.ceil((changes.batch or run.batch) / group.world_size), changes)
        if forecast is None:
            return None
        return forecast.memory_bytes + (forecast.gradient_bytes if group.world_size > 1 else 0)  # the buckets of DDP

    def disk(self, run: PlannedRun) -> tuple[int, int] | None:
        """Bytes that stay of a run, and those that it takes besides while it is running."""
        forecast = self.of(run)
        if forecast is None:
            return None
        outputs = 4 * run.data.test * max(1, len(run.head.labels)) + 8 * run.data.train
        return forecast.disk_bytes + outputs + _HISTORY * run.steps, forecast.disk_bytes_running


@lru_cache(maxsize=64)
def _config_of(model: ModelSpec) -> object:
    return load_config(model)


def _forecast(run: PlannedRun, method: MethodSpec, batch: int, length: int) -> MethodForecast | None:
    config = _config_of(run.spec.model)
    longest = getattr(config, "max_position_embeddings", None)
    if isinstance(longest, int) and longest > 0:
        length = min(length, longest)
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        (forecast,) = forecast_methods(config, run.task, run.head, [method], batch=batch, length=length, device=device)
    except ModelError:  # a model that can't be stepped without weights: nothing is known, so nothing refused
        return None
    return forecast


def _check_memory(runs: Sequence[PlannedRun], forecasts: _Forecasts, at_once: int) -> str:
    if not at_once:
        return ""
    group, free = forecasts.process_group, available_memory()
    needs = [(need, run) for run in _heaviest(runs) if (need := forecasts.memory(run)) is not None]
    most, worst = max(needs, key=lambda need: need[0], default=(0, None))
    if worst is None or most * at_once * _on_one_memory(group) <= free:
        return ""

    def fits_with(changes: _Changes) -> bool:
        need = forecasts.memory(worst, changes)
        return need is not None and need * at_once * _on_one_memory(changes.process_group or group) <= free

    knobs = [
        f"{name} {value}"
        for name, values in _knobs(worst, group)
        if (value := _first_fit(values, fits_with)) is not None
    ]
    if at_once > 1 and most <= free:
        knobs.append(f"{free // most} at once")
    several = f" for {at_once} runs at once" if at_once > 1 else ""
    if group.world_size > 1:
        shared = at_once * _on_one_memory(group) > 1
        several = f" for {group.local_world_size or group.world_size} processes" if shared else " in each process"
    return (
        f"not enough memory: {worst.spec.method.label} on {worst.spec.model.path} needs about "
        f"{size(most * at_once * _on_one_memory(group))}{several} ({_describe_step(worst)}), and {size(free)} is free; "
        + (f"what would fit: {', or '.join(knobs)}" if knobs else "use a smaller model, or a machine with more memory")
    )


def _heaviest(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Of runs that differ in their rank alone the largest is enough."""
    heaviest: dict[tuple[object, ...], PlannedRun] = {}
    for run in runs:
        spec, method = run.spec, run.spec.method
        where = spec.model.model_dump_json(), spec.task, method.name, str(method.targets), str(method.layers)
        key = (*where, spec.training.batch_size, run.data.train, run.length)
        if key not in heaviest or heaviest[key].spec.method.rank < method.rank:
            heaviest[key] = run
    return list(heaviest.values())


def _on_one_memory(group: ProcessGroup) -> int:
    """Processes of one run that share a memory: all of a machine's, or one on each GPU."""
    return 1 if torch.cuda.is_available() else group.local_world_size or group.world_size


def _knobs(run: PlannedRun, group: ProcessGroup) -> Iterator[tuple[str, dict[int | str, _Changes]]]:
    """Name for the user, and the values to try with what they change, the mildest first."""
    method = run.spec.method
    yield "batch_size", {n: _Changes(batch=n) for n in _halves(run.batch, group.world_size)}
    if run.task.has_tokens:
        yield "max_length", {n: _Changes(length=n) for n in _halves(run.length, _LEAST_LENGTH)}
    if method.name not in ("fft", "head"):
        yield "rank", {n: _Changes(rank=n) for n in _halves(method.rank, 1)}
        if method.targets != "qv":
            yield "targets", {"qv": _Changes(targets="qv")}
    if group.world_size > 1 and group.local_world_size in (None, group.world_size):
        fewer = {n: replace(group, world_size=n, local_world_size=n) for n in _halves(group.world_size, 1)}
        yield "processes", {n: _Changes(process_group=smaller) for n, smaller in fewer.items()}


def _first_fit(values: dict[int | str, _Changes], fits_with: Callable[[_Changes], bool]) -> int | str | None:
    return next((value for value, changes in values.items() if fits_with(changes)), None)


def _halves(value: int, least: int) -> Iterator[int]:
    while (value := value // 2) >= least:
        yield value


def _describe_step(run: PlannedRun) -> str:
    """What the size of a step depends on, in words."""
    training = run.spec.training
    words = f"batch_size {training.batch_size}"
    if run.batch < training.batch_size:
        words += f", of {run.data.train} training examples"
    if run.task.has_tokens:
        limit = training.max_length
        words += f", texts of up to {run.length} tokens" if run.length < limit else f", max_length {limit}"
    return words


@dataclass(frozen=True)
class _DiskNeed:
    run: PlannedRun
    stays: int
    running: int


def _check_disk(runs: Sequence[PlannedRun], forecasts: _Forecasts, out: Path, at_once: int) -> str:
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    needs = [_DiskNeed(run, *disk) for run in runs if (disk := forecasts.disk(run)) is not None]
    if _total(needs, at_once) <= free:
        return ""
    count, left = 0, free - at_once * max(need.running for need in needs)
    for need in needs:
        left -= need.stays
        count += left >= 0
    knobs = [*_disk_knobs(needs, free, at_once), "make room (`tunewise runs gc`)", "choose another --out"]
    return (
        f"not enough disk: about {size(_total(needs, at_once))} is needed for {pluralize(len(needs), 'run')}, "
        f"checkpoints included, and {size(free)} is free in {place}; {', or '.join(knobs)}"
        + (f" (there is room for {pluralize(count, 'run')})" if count else "")
    )


def _disk_knobs(needs: Sequence[_DiskNeed], free: int, at_once: int) -> Iterator[str]:
    by_method: dict[str, int] = {}
    for need in needs:
        label = need.run.spec.method.label
        by_method[label] = by_method.get(label, 0) + need.stays
    largest, share = max(by_method.items(), key=lambda item: item[1])
    without = [need for need in needs if need.run.spec.method.label != largest]
    if without and _total(without, at_once) <= free:
        yield f"leave out {largest} ({share / sum(by_method.values()):.0%} of what stays)"


def _total(needs: Sequence[_DiskNeed], at_once: int) -> int:
    """Bytes of all runs, and of as many as are under way at once."""
    return sum(need.stays for need in needs) + at_once * max((need.running for need in needs), default=0)


def available_memory() -> int:
    """Bytes that runs can still take: of the GPU where there is one, else of the host or the process's control group,
    whichever is less."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return free
    if limit == "max":
        return free
    return max(0, min(free, int(limit) - used + int(stat.get("inactive_file", 0))))
