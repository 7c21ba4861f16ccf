"""Whether runs will fit memory and disk, asked before the first of them starts; if not, what would make them fit."""

from __future__ import annotations

import itertools
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import psutil
import torch

from tunewise.catalog import get_method
from tunewise.device import gpus, on_gpu
from tunewise.errors import InsufficientResources, ModelError
from tunewise.models.load import load_config
from tunewise.spec import ExecutionOptions, MethodSpec, ModelSpec
from tunewise.store.files import size
from tunewise.store.folders import RunStore
from tunewise.study.executors import with_default_jobs
from tunewise.study.executors.ray import fits
from tunewise.study.forecast import MethodForecast, forecast_methods, step_settings
from tunewise.study.forecast_step import StepSettings, equivalent_method
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
        at_once = max(1, min(runs, with_default_jobs(options).jobs or 1))
        return SideBySide(at_once, math.ceil(at_once / max(1, len(gpus()))))
    ray = options.ray
    if ray.address is not None:
        return SideBySide(1, 0)
    devices = len(gpus())
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
    in_memory = _check_memory(runs, forecasts, at_once.sharing) if at_once.sharing else ""
    for problem in (in_memory, _check_disk(runs, forecasts, out, at_once.runs)):
        if problem:
            raise InsufficientResources(f"{problem}; --force (force=True) starts all the same")


class _Forecasts:
    """One forecast for all runs whose step is the same; None where there can be none."""

    def __init__(self, process_group: ProcessGroup) -> None:
        self.process_group = process_group
        self._cache: dict[str, MethodForecast | None] = {}

    def of(
        self, run: PlannedRun, batch: int | None = None, length: int | None = None, rank: int | None = None
    ) -> MethodForecast | None:
        """With these settings in place of the run's own."""
        spec, training = run.spec, run.spec.training
        changes = {"links": spec.links, "restart_every": None, "rank": rank or spec.method.rank}
        method = spec.method.model_copy(update=changes)
        batch, length = batch or training.batch_size, length or run.length
        stand_in = equivalent_method(method).model_dump_json()
        steps = f"{training.gradient_checkpointing} {training.gradient_accumulation_steps} {training.optimizer}"
        key = f"{spec.model} {run.head} {stand_in} {method.links} {method.name} {batch} {length} {steps}"
        if key not in self._cache:
            self._cache[key] = _forecast(run, method, batch, length)
        return self._cache[key]

    def memory(self, run: PlannedRun, batch_size: int = 0, max_length: int = 0, rank: int = 0) -> int | None:
        """Bytes that one process takes at its worst moment."""
        processes = self.process_group.world_size
        forecast = self.of(run, math.ceil((batch_size or run.batch) / processes), max_length, rank)
        if forecast is None:
            return None
        return forecast.memory_bytes + (forecast.gradient_bytes if processes > 1 else 0)  # the buckets of DDP

    def disk(self, run: PlannedRun) -> tuple[int, int] | None:
        """Bytes that stay of a run, and those that it takes besides while it is running."""
        forecast = self.of(run)
        if forecast is None:
            return None
        losses = min(run.data.train, run.spec.evaluation.gap_samples)
        outputs = 4 * run.data.test * max(1, len(run.head.labels)) + 8 * losses
        return forecast.disk_bytes + outputs + _HISTORY * run.steps, forecast.disk_bytes_running


@lru_cache(maxsize=64)
def _config_of(model: ModelSpec) -> object:
    return load_config(model)


def _forecast(run: PlannedRun, method: MethodSpec, batch: int, length: int) -> MethodForecast | None:
    config = _config_of(run.spec.model)
    longest = getattr(config, "max_position_embeddings", None)
    if isinstance(longest, int) and longest > 0:
        length = min(length, longest)
    device: Literal["cpu", "cuda"] = "cuda" if on_gpu() else "cpu"
    settings: StepSettings = {
        **step_settings(run.spec.model, run.spec.training, device),
        "batch": batch,
        "length": length,
    }
    try:
        (forecast,) = forecast_methods(config, run.task, run.head, [method], **settings)
    except ModelError:  # a model that can't be stepped without weights: nothing is known, so nothing refused
        return None
    return forecast


def _check_memory(runs: Sequence[PlannedRun], forecasts: _Forecasts, at_once: int) -> str:
    group, free = forecasts.process_group, available_memory()
    # Processes of one run share a machine's memory, or have a GPU each.
    sharing = at_once * (1 if on_gpu() else group.local_world_size or group.world_size)
    needs = [(need, run) for run in _heaviest(runs) if (need := forecasts.memory(run)) is not None]
    most, worst = max(needs, key=lambda need: need[0], default=(0, None))
    if worst is None or most * sharing <= free:
        return ""
    knobs = []
    for name, values in _knobs(worst, group.world_size):
        fitting = (n for n in values if (need := forecasts.memory(worst, **{name: n})) and need * sharing <= free)
        knobs += [f"{name} {value}" for value in itertools.islice(fitting, 1)]
    if at_once > 1 and most <= free:
        knobs.append(f"{free // most} at once")
    several = f" for {at_once} runs at once" if at_once > 1 else ""
    if group.world_size > 1:
        several = f" for {group.local_world_size or group.world_size} processes" if sharing > 1 else " in each process"
    return (
        f"not enough memory: {worst.spec.method.label} on {worst.spec.model.path} needs about "
        f"{size(most * sharing)}{several} ({_describe_step(worst)}), and {size(free)} is free; "
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


def _knobs(run: PlannedRun, processes: int) -> Iterator[tuple[str, Iterator[int]]]:
    """Settings, and the values to try, the mildest first."""
    yield "batch_size", _halves(run.batch, processes)
    if run.task.has_tokens:
        yield "max_length", _halves(run.length, _LEAST_LENGTH)
    if get_method(run.spec.method.name).takes_rank:
        yield "rank", _halves(run.spec.method.rank, 1)


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


def _check_disk(runs: Sequence[PlannedRun], forecasts: _Forecasts, out: Path, at_once: int) -> str:
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    needs = [disk for run in runs if (disk := forecasts.disk(run)) is not None]
    total = sum(stays for stays, _ in needs) + at_once * max((running for _, running in needs), default=0)
    if total <= free:
        return ""
    return (
        f"not enough disk: about {size(total)} is needed for {pluralize(len(needs), 'run')}, checkpoints included, and "
        f"{size(free)} is free in {place}; make room (`tunewise runs gc`), choose another --out, or start fewer runs"
    )


def available_memory() -> int:
    """Bytes that runs can still take: of the GPU where there is one, else of the host or the process's control group,
    whichever is less."""
    if on_gpu():
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
