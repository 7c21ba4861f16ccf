"""`tunewise train`: one run. Started by `torchrun` or `accelerate launch`, on several processes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tunewise.cli import flags
from tunewise.errors import SpecError, TunewiseError
from tunewise.spec import ExecutionOptions, RunSpec, StudySpec, load_yaml, merge_specs, parse, split_options

if TYPE_CHECKING:
    from tunewise.store.folders import RunStore
    from tunewise.store.records import RunRecord
    from tunewise.study.plan import Plan
    from tunewise.training.process_group import ProcessGroup

_GRACE_PERIOD = 3.0
"""Seconds that another process waits before it ends, so that rank 0 can print its error before the launcher ends it."""
_UNUSED = ("title", "costs", "jobs", "track", "on", "ray_address", "cpus_per_run", "gpus_per_run")
"""Options that mean nothing to one run."""
_OF_STUDIES = ("tuning", "measures", "measure_settings", "reference")


@flags.spec_flags(RunSpec, ExecutionOptions, without=_UNUSED)
def train(given: flags.Given, spec: flags.SpecFile = None, /) -> int:
    """Train; rank 0 prints, and any other process with an error that rank 0 does not have."""
    rank, joined_others = int(os.environ.get("RANK", "0")), False
    try:
        options, study = _read(spec, given)

        from tunewise.device import use_device
        from tunewise.store.folders import RunStore
        from tunewise.study.plan import make_plan
        from tunewise.study.resources import check_resources
        from tunewise.training.process_group import join_process_group

        with use_device(options.device), join_process_group() as process_group:
            joined_others = True
            process_group.on_every_rank(lambda: _check_batch(study, process_group))
            store = RunStore(options.out)
            plan = process_group.on_every_rank(lambda: make_plan(study, store))
            if not options.force:
                process_group.on_rank_zero(lambda: check_resources(plan.todo, store.root, process_group=process_group))
            record = _run(plan, store, process_group)
    except TunewiseError as error:
        if not rank:
            raise
        if joined_others and not error.on_all_ranks:
            print(f"error in process {rank}: {error}", file=sys.stderr)
        else:
            time.sleep(_GRACE_PERIOD)
        return error.exit_code
    if process_group.is_rank_zero:
        _show(record, store.folder(record.id))
    elif record.status != "done":
        time.sleep(_GRACE_PERIOD)
    return {"done": 0, "diverged": 4}.get(record.status, 1)


def _read(spec: Path | None, given: flags.Given) -> tuple[ExecutionOptions, StudySpec]:
    """How to run, and a study of one run. The file may be that of a study; flags then select a method and a seed."""
    flags_of_method, seed = given.pop("method", {}), given.pop("seed", None)
    content = merge_specs(load_yaml(spec) if spec else {}, given)
    for name in ("model", "data"):
        if not content.get(name):
            raise SpecError(f"{name!r} is missing: give --{name}, or a spec file")
    for key in _OF_STUDIES:
        content.pop(key, None)
    listed = content.pop("methods", content.pop("method", None)) or []
    names = [name.strip() for name in listed.split(",")] if isinstance(listed, str) else listed
    methods: list[flags.Given] = [{"name": m} if isinstance(m, str) else m for m in names]
    if name := flags_of_method.get("name"):
        methods = [m for m in methods if m.get("name") == name][:1] or [{"name": name}]
    if len(methods) != 1:
        choices = ", ".join(str(m.get("name")) for m in methods)
        raise SpecError(f"train takes one method: give --method{f', one of {choices}' if choices else ''}")
    shared = {key: content.pop(key) for key in StudySpec.short_keys if key in content}
    method = {**shared, **methods[0], **flags_of_method}
    if given.get("training", {}).get("learning_rate"):
        method.pop("learning_rate", None)
    seed = content.pop("seed", None) if seed is None else seed
    if seed is not None:
        content["seeds"] = [seed]
    options, content = split_options({"seeds": [0], **content})
    study = parse(StudySpec, {**content, "methods": [method], "reference": method["name"], "measures": "none"})
    if len(study.seeds) != 1:
        raise SpecError(f"train takes one seed: give --seed, one of {', '.join(map(str, study.seeds))}")
    return options, study


def _check_batch(study: StudySpec, process_group: ProcessGroup) -> None:
    if study.training.batch_size < process_group.world_size:
        raise SpecError(
            f"batch_size {study.training.batch_size} can't be shared by {process_group.world_size} processes"
        )


def _run(plan: Plan, store: RunStore, process_group: ProcessGroup) -> RunRecord:
    from rich.console import Console

    from tunewise.cli.progress import show_progress
    from tunewise.run import run
    from tunewise.study.monitor import Monitor

    console = Console(quiet=not process_group.is_rank_zero, highlight=False)
    first = plan.runs[0]
    if not plan.done:
        shared = f", shared by {process_group.world_size} processes" if process_group.world_size > 1 else ""
        console.print(
            f"{first.spec.method.label} on {plan.spec.model.path}: {first.facts.trainable:,} trained parameters, "
            f"{first.steps:,} steps of {plan.spec.training.batch_size} examples{shared}"
        )
    with show_progress(console) as listener:
        monitor = Monitor.of(plan, store, listener)
        if plan.todo:
            monitor.begin(first)
        record = run(first.spec, store, task=plan.task, listener=monitor, process_group=process_group)
        if plan.todo:
            monitor.end(first, record)
        return record


def _show(record: RunRecord, folder: Path) -> None:
    if record.results is None:
        print(f"{record.status}: {record.error}")
        return
    results = record.results
    values = [f"{key} {value:.4g}" for key, value in results.test.metrics.items()]
    print(f"test: loss {results.test.loss:.4f}, {', '.join(values)} (epoch {results.selected_epoch:g})")
    print(f"adapter  {folder / 'adapter'}")
