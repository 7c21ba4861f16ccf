"""Whether runs will fit memory and disk, asked before the first of them starts; if not, what would make them fit."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from tunewise.errors import ModelError, NoRoom
from tunewise.models.head import Head
from tunewise.models.load import load_config
from tunewise.planning import Plan
from tunewise.preview.forecast import MethodForecast, forecast
from tunewise.preview.step import plain_kin
from tunewise.spec import MethodSpec, RunSpec
from tunewise.store.files import size
from tunewise.store.folders import RunStore
from tunewise.store.records import DataFacts
from tunewise.tasks.build import task_class
from tunewise.tasks.contract import Task
from tunewise.text_format import pluralize
from tunewise.training.process_group import SINGLE_PROCESS, ProcessGroup
from tunewise.tuning.search import settled

_HISTORY = 150
"""Bytes of a step's line in the history, about."""
_LEAST_LENGTH = 16


@dataclass(frozen=True)
class Wanted:
    """A run that is still to be done, with what is known of its data."""

    run: RunSpec
    head: Head
    steps: int
    train: int
    test: int
    snapshots: int = 0
    """Of its way, kept in its folder."""
    longest: int | None = None
    """Tokens of its longest training example, where that is known: no batch is wider."""

    @property
    def task(self) -> type[Task]:
        """The class of its task."""
        return task_class(self.run.task)

    @property
    def length(self) -> int:
        """Tokens of its widest batch."""
        most = self.run.training.max_length
        return most if self.longest is None else min(most, self.longest)

    @property
    def batch(self) -> int:
        """Examples of its largest batch."""
        return max(1, min(self.run.training.batch_size, self.train))


def wanted_of(plan: Plan) -> list[Wanted]:
    """The runs of a comparison that are still to be done."""
    snapshots = plan.trajectory.count if plan.trajectory else 0
    missing = [run for run in plan.runs if run.id not in plan.done]
    length = plan.task.longest() if missing else None
    return [wanted(run, plan.data, plan.steps, snapshots, length) for run in missing]


def wanted(run: RunSpec, data: DataFacts, steps: int, snapshots: int = 0, longest: int | None = None) -> Wanted:
    """One run, by the facts of its data and, of texts, the tokens of the longest that it is trained on."""
    head = task_class(run.task).make_head(data.labels, run.data)
    return Wanted(run, head, steps, data.train, data.test, snapshots, longest)


def check_plan(plan: Plan, store: RunStore, *, jobs: int | None) -> None:
    """Raises `NoRoom` as `check_room` does, for the runs of a plan that are still to be done."""
    plan = settled(plan, store)
    wanted = wanted_of(plan)
    at_once = jobs or 1
    if plan.spec.tuning is None:
        at_once = max(1, min(at_once, len(wanted)))
    check_room(wanted, store.root, at_once=at_once)


def check_room(
    wanted: Sequence[Wanted],
    out: Path,
    *,
    at_once: int = 1,
    sharing: int | None = None,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> None:
    """Raises `NoRoom`, one line with what would make it fit, where these runs need more memory than there is now, or
    more disk, with `at_once` of them side by side; `sharing` of those have this memory in common (a GPU's), all unless
    given, none where they are done on other machines. `process_group`: the processes that train each run together.
    Says nothing where no forecast can be made."""
    known = _Forecasts()
    for problem in (
        _memory(wanted, known, at_once if sharing is None else sharing, process_group),
        _disk(wanted, known, out, at_once),
    ):
        if problem:
            raise NoRoom(f"{problem}; --force (force=True) starts all the same")


class _Forecasts:
    """One forecast for all runs whose step is the same; None where there can be none."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], MethodForecast | None] = {}
        self._configs: dict[str, Any] = {}
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def of(self, one: Wanted, **changes: Any) -> MethodForecast | None:
        """`changes`: batch, length, rank or targets in place of the run's own."""
        spec = one.run
        changed: dict[str, Any] = {key: changes[key] for key in ("rank", "targets") if key in changes}
        method = spec.method.model_copy(update={"links": spec.links, "restart_every": None, **changed})
        batch = changes.get("batch", spec.training.batch_size)
        length = changes.get("length", one.length)
        chain = method.links, spec.method.name
        key = (spec.model.model_dump_json(), one.head, plain_kin(method).model_dump_json(), chain, batch, length)
        if key not in self._made:
            self._made[key] = self._forecast(spec, one.head, method, batch, length)
        return self._made[key]

    def _forecast(
        self, spec: RunSpec, head: Head, method: MethodSpec, batch: int, length: int
    ) -> MethodForecast | None:
        name = spec.model.model_dump_json()
        if name not in self._configs:
            self._configs[name] = load_config(spec.model)
        config = self._configs[name]
        longest = getattr(config, "max_position_embeddings", None)
        if isinstance(longest, int) and longest > 0:
            length = min(length, longest)
        device: Any = self.device
        try:
            (found,) = forecast(
                config, task_class(spec.task), head, [method], batch=batch, length=length, device=device
            )
        except ModelError:  # a model that can't be stepped without weights: nothing is known, so nothing refused
            return None
        return found


def _memory(wanted: Sequence[Wanted], known: _Forecasts, at_once: int, process_group: ProcessGroup) -> str:
    if not at_once:
        return ""
    there = available_memory()
    heaviest: dict[tuple[Any, ...], Wanted] = {}
    for one in wanted:  # of runs that differ in their rank alone the largest is enough
        method, training = one.run.method, one.run.training
        step = training.batch_size, one.train, one.length
        key = (
            one.run.model.model_dump_json(),
            one.run.task,
            method.name,
            str(method.targets),
            str(method.layers),
            step,
        )
        if key not in heaviest or heaviest[key].run.method.rank < method.rank:
            heaviest[key] = one
    needs = [(need, one) for one in heaviest.values() if (need := _needed(one, known, process_group)) is not None]
    most, worst = max(needs, key=lambda need: need[0], default=(0, None))
    times = at_once * _on_one_memory(process_group)
    if worst is None or most * times <= there:
        return ""

    def fits(**changes: Any) -> bool:
        processes = (
            replace(process_group, world_size=changes["world"], local_world_size=changes["world"])
            if "world" in changes
            else process_group
        )
        least = _needed(worst, known, processes, **{key: changes[key] for key in changes if key != "world"})
        return least is not None and least * at_once * _on_one_memory(processes) <= there

    spec = worst.run
    several = f" for {at_once} runs at once" if at_once > 1 else ""
    if process_group.world_size > 1:
        several = (
            f" for {process_group.local_world_size or process_group.world_size} processes"
            if times > 1
            else " in each process"
        )
    knobs = [
        f"{name} {value}"
        for name, key, values in _knobs(worst, process_group)
        if (value := _first(values, key, fits)) is not None
    ]
    if at_once > 1 and most <= there:
        knobs.append(f"{there // most} at once")
    return (
        f"not enough memory: {spec.method.label} on {spec.model.path} needs about {size(most * times)}{several} "
        f"({_step(worst)}), and {size(there)} is free; "
        + (f"what would fit: {', or '.join(knobs)}" if knobs else "use a smaller model, or a machine with more memory")
    )


def _needed(one: Wanted, known: _Forecasts, process_group: ProcessGroup, **changes: Any) -> int | None:
    """Bytes that one process takes at its worst moment. `changes`: as of `_Forecasts.of`."""
    batch = math.ceil(changes.pop("batch", one.batch) / process_group.world_size)
    found = known.of(one, batch=batch, **changes)
    if found is None:
        return None
    copies = found.gradient_bytes if process_group.world_size > 1 else 0  # in the buckets in which DDP averages them
    return found.memory_bytes + copies


def _on_one_memory(process_group: ProcessGroup) -> int:
    """Processes of one run that share a memory: all of a machine's, or one on each GPU."""
    return 1 if torch.cuda.is_available() else process_group.local_world_size or process_group.world_size


def _knobs(one: Wanted, process_group: ProcessGroup) -> Iterator[tuple[str, str, list[Any]]]:
    """Name for the user, name for `_Forecasts.of`, and the values to try, the mildest first."""
    method = one.run.method
    yield "batch_size", "batch", list(_halves(one.batch, process_group.world_size))
    if one.task.has_tokens:
        yield "max_length", "length", list(_halves(one.length, _LEAST_LENGTH))
    if method.name not in ("fft", "head"):
        yield "rank", "rank", list(_halves(method.rank, 1))
        if method.targets != "qv":
            yield "targets", "targets", ["qv"]
    if process_group.world_size > 1 and process_group.local_world_size in (None, process_group.world_size):
        yield "processes", "world", list(_halves(process_group.world_size, 1))


def _first(values: Sequence[Any], key: str, fits: Callable[..., bool]) -> Any:
    return next((value for value in values if fits(**{key: value})), None)


def _halves(value: int, least: int) -> Iterator[int]:
    while (value := value // 2) >= least:
        yield value


def _step(one: Wanted) -> str:
    """What its size depends on, in words."""
    training = one.run.training
    words = [f"batch_size {training.batch_size}"]
    if one.batch < training.batch_size:
        words[0] += f", of {one.train} training examples"
    if one.task.has_tokens:
        most = training.max_length
        words.append(f"texts of up to {one.length} tokens" if one.length < most else f"max_length {most}")
    return ", ".join(words)


def _disk(wanted: Sequence[Wanted], known: _Forecasts, out: Path, at_once: int) -> str:
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    needs = [(stays, running, one) for one in wanted if (found := _bytes(one, known)) for stays, running in [found]]
    needed = _total(needs, at_once)
    if needed <= free:
        return ""
    by_method: dict[str, int] = {}
    for stays, _, one in needs:
        by_method[one.run.method.label] = by_method.get(one.run.method.label, 0) + stays
    largest, share = max(by_method.items(), key=lambda item: item[1])
    without = [need for need in needs if need[2].run.method.label != largest]
    knobs = []
    if without and _total(without, at_once) <= free:
        knobs.append(f"leave out {largest} ({share / sum(by_method.values()):.0%} of what stays)")
    rank = max((one.run.method.rank for _, _, one in needs if one.run.method.name not in ("fft", "head")), default=0)
    for less in _halves(rank, 1):
        smaller = [
            (*found, one) for one in wanted if (found := _bytes(one, known, rank=min(less, one.run.method.rank)))
        ]
        if _total(smaller, at_once) <= free:
            knobs.append(f"use rank {less}")
            break
    count, left = 0, free - at_once * max(running for _, running, _ in needs)
    for stays, _, _ in needs:
        left -= stays
        count += left >= 0
    return (
        f"not enough disk: about {size(needed)} is needed for {pluralize(len(needs), 'run')}, checkpoints included, and "
        f"{size(free)} is free "
        f"in {place}; {', or '.join([*knobs, 'make room (`tunewise runs gc`)', 'choose another --out'])}"
        + (f" (there is room for {pluralize(count, 'run')})" if count else "")
    )


def _total(needs: Sequence[tuple[int, int, Wanted]], at_once: int) -> int:
    if not needs:
        return 0
    return sum(stays for stays, _, _ in needs) + at_once * max(running for _, running, _ in needs)


def _bytes(one: Wanted, known: _Forecasts, **changes: Any) -> tuple[int, int] | None:
    """What stays of a run, and what it takes besides while it is running."""
    found = known.of(one, **changes)
    if found is None:
        return None
    outputs = 4 * one.test * max(1, len(one.head.labels)) + 8 * one.train
    stays = found.disk_bytes + outputs + _HISTORY * one.steps + 4 * one.snapshots * found.trainable_parameters
    return stays, found.disk_bytes_running


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
