"""`tunewise train`: one run. Started by `torchrun` or `accelerate launch`, on several processes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewise.cli import options
from tunewise.errors import SpecError, TunewiseError

if TYPE_CHECKING:
    from tunewise.planning import Plan
    from tunewise.spec import ExecutionOptions, StudySpec
    from tunewise.store.records import RunRecord
    from tunewise.training.process_group import ProcessGroup


_FIRST_WORD = 3.0
"""Seconds for the first process to say what has gone wrong: once another has left with an error, it is ended."""


def train(
    context: typer.Context,
    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC]", help="YAML file as of a comparison; flags given here win.")
    ] = None,
    task: options.Task = None,
    model: options.Model = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = None,
    data: options.Data = None,
    validation: options.Validation = None,
    test: options.Test = None,
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    image: options.Image = None,
    image_size: options.ImageSize = None,
    choices: options.Choices = None,
    encoding: options.Encoding = None,
    train_size: options.TrainSize = None,
    validation_size: options.ValidationSize = None,
    test_size: options.TestSize = None,
    method: Annotated[str | None, options.methods(help="One name from the catalog.")] = None,
    rank: options.Rank = None,
    alpha: options.Alpha = None,
    targets: options.Targets = None,
    layers: options.Layers = None,
    links: Annotated[int | None, options.methods(help="Of a chain.  [default: the method's own]")] = None,
    seed: Annotated[int | None, options.training(help="[default: 0]")] = None,
    epochs: options.Epochs = None,
    batch_size: Annotated[int | None, options.training(help="Of all processes together.  [default: 16]")] = None,
    learning_rate: options.LearningRate = None,
    weight_decay: options.WeightDecay = None,
    max_length: options.MaxLength = None,
    save_every: Annotated[int | None, options.doing(help="Steps between checkpoints.  [default: an epoch]")] = None,
    out: options.Out = None,
    force: options.Force = False,
) -> None:
    """Train one method once: an ordinary run folder with adapter, record and history.

    The same command again goes on, or says what came of it. On several processes, each with a copy of the model and a
    share of every batch: torchrun --nproc-per-node 2 -m tunewise train ...
    """
    given: dict[str, Any] = {
        **options.sections(context.params),
        "seeds": None if seed is None else [seed],
        "out": str(out) if out else None,
    }
    own: dict[str, Any] = {"name": method, "rank": rank, "alpha": alpha, "links": links, "layers": layers}
    own["targets"] = targets
    _plan_and_run(spec, given, own, force=force)


def _content(spec: Path | None, given: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """File and flags together; a file of several methods or seeds needs to be told which."""
    from tunewise.spec import load_yaml, merge_specs

    content = merge_specs(load_yaml(spec) if spec else {}, given)
    for name in ("model", "data"):
        if not content.get(name):
            raise SpecError(f"{name!r} is missing: give --{name}, or a spec file")
    for key in ("tuning", "measures", "measure_settings", "trajectory", "reference"):
        content.pop(key, None)
    listed = content.pop("methods", content.pop("method", None))
    common = {key: content.pop(key) for key in ("rank", "alpha", "targets", "layers") if key in content}
    named = [name.strip() for name in listed.split(",")] if isinstance(listed, str) else list(listed or [])
    rows: list[dict[str, Any]] = [{"name": row} if isinstance(row, str) else row for row in named]
    if own["name"] is not None:
        rows = [row for row in rows if row.get("name") == own["name"]][:1] or [{"name": own["name"]}]
    if len(rows) != 1:
        names = ", ".join(str(row.get("name")) for row in rows)
        raise SpecError(f"train takes one method: give --method{f', one of {names}' if names else ''}")
    said = {key: value for key, value in own.items() if value is not None}
    if given["training"]["learning_rate"] is not None:  # a flag stands above what a file says of the method
        rows[0] = {key: value for key, value in rows[0].items() if key != "learning_rate"}
    content["methods"] = [{**common, **rows[0], **said}]
    if "seed" in content:
        content["seeds"] = [content.pop("seed")]
    content.setdefault("seeds", [0])
    return content


def _plan_and_run(spec: Path | None, given: dict[str, Any], own: dict[str, Any], *, force: bool) -> None:
    """Do the run; of several processes the first one speaks, and any that met an error which the others have not."""
    rank, together = int(os.environ.get("RANK", "0")), False
    try:
        manner, checked = _checked(_content(spec, given, own))

        from tunewise.quiet import quiet_libraries

        quiet_libraries()
        from tunewise.planning import make_plan
        from tunewise.preflight import check_room, wanted_of
        from tunewise.store.folders import RunStore
        from tunewise.training.process_group import join_process_group

        with join_process_group() as process_group:
            together = True
            process_group.on_every_rank(lambda: _check_batch(checked, process_group))
            store = RunStore(manner.out)
            plan = process_group.on_every_rank(lambda: make_plan(checked, store))
            if not force:
                process_group.on_rank_zero(lambda: check_room(wanted_of(plan), store.root, process_group=process_group))
            record = _run(plan, store, process_group)
    except TunewiseError as error:
        if not rank:
            raise
        if together and not error.on_all_ranks:
            print(f"error in process {rank}: {error}", file=sys.stderr)
        else:
            time.sleep(_FIRST_WORD)
        raise typer.Exit(error.exit_code) from None
    if process_group.is_rank_zero:
        _show(record, store.folder(record.id))
    if record.status != "done":
        if not process_group.is_rank_zero:
            time.sleep(_FIRST_WORD)
        raise typer.Exit(4 if record.status == "diverged" else 1)


def _checked(content: dict[str, Any]) -> tuple[ExecutionOptions, StudySpec]:
    from tunewise.spec import StudySpec, parse, split_options

    manner, content = split_options(content)
    checked = parse(StudySpec, {**content, "reference": content["methods"][0]["name"], "measures": "none"})
    if len(checked.seeds) != 1:
        raise SpecError(f"train takes one seed: give --seed, one of {', '.join(map(str, checked.seeds))}")
    return manner, checked


def _check_batch(spec: StudySpec, process_group: ProcessGroup) -> None:
    if spec.training.batch_size < process_group.world_size:
        raise SpecError(
            f"batch_size {spec.training.batch_size} can't be shared by {process_group.world_size} processes"
        )


def _run(plan: Plan, store: Any, process_group: ProcessGroup) -> RunRecord:
    from rich.console import Console

    from tunewise.cli.progress import LiveProgress
    from tunewise.run import run

    console = Console(quiet=not process_group.is_rank_zero)
    if process_group.is_rank_zero and not plan.done:
        facts = plan.methods[0].facts
        shared = f", shared by {process_group.world_size} processes" if process_group.world_size > 1 else ""
        console.print(
            f"{plan.methods[0].method.label} on {plan.spec.model.path}: {facts.trainable:,} trained parameters, "
            f"{plan.steps:,} steps of {plan.spec.training.batch_size} examples{shared}",
            highlight=False,
        )
    with LiveProgress(console, plan) as listener:
        return run(plan.runs[0], store, task=plan.task, listener=listener, process_group=process_group)


def _show(record: RunRecord, folder: Path) -> None:
    if record.results is None:
        typer.echo(f"{record.status}: {record.error}")
    else:
        results = record.results
        values = [f"{key} {value:.4g}" for key, value in results.test.metrics.items()]
        typer.echo(f"test: loss {results.test.loss:.4f}, {', '.join(values)} (epoch {results.selected_epoch})")
        typer.echo(f"adapter  {folder / 'adapter'}")
