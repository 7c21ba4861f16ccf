"""`tunewise bounds`: bounds on the generalization gap of a run or an adapter, beside the measured gap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tunewise.cli import flags
from tunewise.cli.locating import run_or_adapter
from tunewise.errors import SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from tunewise.measures.bounds.compute import BoundsResult
    from tunewise.measures.bounds.theorems import BoundLine
    from tunewise.store.records import RunRecord

_UNITS = {"loss": " nats", "rank": "", "parameters": ""}


def bounds(
    target: flags.RunOrAdapter,
    /,
    *,
    base: Annotated[str | None, Parameter(help="Base model; the one that the run or adapter names.")] = None,
    samples: Annotated[flags.Count | None, Parameter(help="Adapters: number N of training examples.")] = None,
    classes: Annotated[flags.Count | None, Parameter(help="Adapters: number K of classes.")] = None,
    input_bound: Annotated[
        flags.Positive | None,
        Parameter(help="Largest norm C of an input; measured for a run, 1 for an adapter unless given."),
    ] = None,
    step_size: Annotated[
        flags.Switch, Parameter(help="Runs: measure the curvature, for a column method's largest safe step.")
    ] = False,
    runs: flags.RunsFolder = Path("runs"),
    as_json: flags.Json = False,
) -> None:
    """Compute the bounds."""
    target = run_or_adapter(target, runs)
    record = _record(target)
    if record is None and step_size:
        raise SpecError("--step-size needs a run folder: the curvature is measured on its training examples")
    if record is not None and (samples is not None or classes is not None):
        raise SpecError("the record of a run has its examples and classes; --samples and --classes are for adapters")

    if record is not None:
        title = f"{record.spec.method.label}, seed {record.spec.seed}, run {record.id}"
        result = _of_run(record, target, base, input_bound, step_size)
        source = record.gap_source
    else:
        title = str(target)
        result, source = _of_adapter(target, base, samples, classes, input_bound), None
    if as_json:
        print(json.dumps({"of": title, **result.model_dump(mode="json")}, indent=1, allow_nan=False))
    else:
        _show(title, result, source)


def _record(target: Path) -> RunRecord | None:
    from tunewise.store.folders import RECORD, RunStore

    folder = target.resolve()
    if not (folder / RECORD).exists():
        return None
    record = RunStore(folder.parent).record(folder.name)
    if record is not None and record.status != "done":
        raise SpecError(f"{target} is a run that ended as {record.status!r}, so it has no generalization gap")
    return record


def _of_run(
    record: RunRecord, target: Path, base: str | None, input_bound: float | None, step_size: bool
) -> BoundsResult:
    from tunewise.measures.bounds.compute import bounds_of_run
    from tunewise.measures.finished import FinishedRun
    from tunewise.models.load import model_folder
    from tunewise.tasks.build import build_task

    spec = record.spec
    if base is not None:
        model = spec.model.model_copy(update={"path": base})
        model_folder(model)  # raises where there is no such model
        record = record.model_copy(update={"spec": spec.model_copy(update={"model": model})})
    folder = target.resolve()
    run = FinishedRun(record, folder, build_task(record.spec), folder.parent / "cache")
    return bounds_of_run(run, lambda: None, input_bound=input_bound, with_curvature=step_size)


def _of_adapter(
    target: Path, base: str | None, samples: int | None, classes: int | None, input_bound: float | None
) -> BoundsResult:
    from tunewise.cache import cache_folder
    from tunewise.measures.bounds.compute import bounds_of_adapter
    from tunewise.measures.updates.folder import adapter_folder
    from tunewise.models.bare import base_of_adapter, layers_of_adapter, load_bare
    from tunewise.spec import ModelSpec

    folder = adapter_folder(target)
    named, task_type = base_of_adapter(folder)
    path = base or named
    if path is None:
        raise SpecError(f"{target} does not name its base model; give --base")
    model = load_bare(ModelSpec(path=path), layers_of_adapter(folder), task_type)
    cache = cache_folder()
    return bounds_of_adapter(folder, model, cache=cache, samples=samples, classes=classes, input_bound=input_bound)


def _show(title: str, result: BoundsResult, gap_source: str | None) -> None:
    """Two lines per bound, so that they fit a narrow terminal; assumptions are listed once and referred to by number,
    those that do not hold by letter."""
    from rich.console import Console

    from tunewise.theory import MARKS

    console = Console(highlight=False)
    facts, gap = result.facts, result.gap
    console.print(title, style="bold", markup=False)
    if gap is not None:
        console.print(
            f"measured gap of the loss clipped to [0, {gap.range:.4g}]: {gap.gap:.4g} nats (test "
            f"{gap.test:.4g}, train {gap.train:.4g} over {gap_source}; standard error over items {gap.error:.2g})",
            markup=False,
        )
    layers = f"{len(facts.layers)} changed layers"
    console.print(f"{layers}; input bound {facts.input_bound:.4g}: {facts.input_bound_source}\n")
    assumed: dict[str, str] = {}
    failing: dict[str, str] = {}
    for line in result.lines:
        _show_line(line, assumed, failing, console)
    if failing:
        title = "\nNot met here, or not known to be: the number is what the formula gives, not a bound"
        _list(console, title, failing)
    _list(console, "\nAssumptions", assumed)
    console.print("\nMarks", style="bold")
    marks = {line.mark for line in result.lines}
    for mark, meaning in MARKS.items():
        if mark in marks:
            console.print(f"  {mark}: {meaning}", markup=False)
    for missing in result.missing:
        console.print(f"\n{missing}", markup=False)


def _show_line(line: BoundLine, assumed: dict[str, str], failing: dict[str, str], console: Console) -> None:
    numbers = [assumed.setdefault(a, str(len(assumed) + 1)) for a in line.assumptions]
    letters = [failing.setdefault(u, chr(ord("a") + len(failing))) for u in line.unmet]
    if line.value is None:
        value = f"e^{line.log_value:.5g}"
    else:
        value = str(line.value) if isinstance(line.value, int) else f"{line.value:.4g}"
    units = _UNITS.get(line.units, f" {line.units}")
    console.print(f"{line.title}: [bold]{value}[/bold]{units}{', vacuous' if line.vacuous else ''}")
    notes = [line.source, line.mark, *([f"assumes {' '.join(numbers)}"] if numbers else [])]
    notes += [f"not met: {' '.join(letters)}"] if letters else []
    console.print(f"    {'; '.join(notes)}", style="dim", markup=False)


def _list(console: Console, title: str, reasons: dict[str, str]) -> None:
    console.print(title, style="bold")
    for reason, name in reasons.items():
        console.print(f"  {name:>2}  {reason}", markup=False)
