"""`tunewise bounds`: the theory's numbers for a run or an adapter, with what they assume, beside the measured gap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewise.cli.found import RUN_OR_ADAPTER, run_or_adapter
from tunewise.errors import SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from tunewise.store.records import RunRecord

_UNITS = {"loss": " nats", "rank": "", "parameters": ""}


def bounds(
    target: Annotated[Path, typer.Argument(help=RUN_OR_ADAPTER)],
    base: Annotated[
        str | None, typer.Option(help="Base model of an adapter.  [default: the one that the adapter names]")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Training examples N, where no run says so.")] = None,
    classes: Annotated[int | None, typer.Option(help="Classes K, where no run says so.")] = None,
    input_bound: Annotated[
        float | None, typer.Option(help="C, the largest norm of an input; measured for a run, 1 for an adapter.")
    ] = None,
    step_size: Annotated[
        bool, typer.Option("--step-size", help="Measure the curvature, for a column method's largest safe step.")
    ] = False,
    runs: Annotated[Path, typer.Option(help="The runs folder, for a run by its id.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """What theory says of the generalization gap of a run, or of an adapter, and how little or much that is."""
    for name, value in (("--samples", samples), ("--classes", classes), ("--input-bound", input_bound)):
        if value is not None and value <= 0:
            raise SpecError(f"{name} {value:g}: it must be above 0")
    target = run_or_adapter(target, runs)
    record = _record(target)
    if record is None and step_size:
        raise SpecError("--step-size needs a run folder: the curvature is measured on its training examples")

    from tunewise.quiet import quiet_libraries

    quiet_libraries()
    if record is not None:
        values = _of_run(record, target, base, samples, classes, input_bound, step_size)
    else:
        values = _of_adapter(target, base, samples, classes, input_bound)
    if as_json:
        typer.echo(json.dumps(values, indent=1, allow_nan=False))
    else:
        _show(values)


def _record(target: Path) -> RunRecord | None:
    from tunewise.store.folders import RECORD, RunStore

    folder = target.resolve()
    if (folder / RECORD).exists():
        record = RunStore(folder.parent).record(folder.name)
        if record is not None and record.status != "done":
            raise SpecError(f"{target} is a run that ended as {record.status!r}, so there is no gap to speak of")
        return record
    return None


def _of_run(
    record: RunRecord,
    target: Path,
    base: str | None,
    samples: int | None,
    classes: int | None,
    input_bound: float | None,
    step_size: bool,
) -> dict[str, Any]:
    from tunewise.measures.bounds.compute import bounds_of_run
    from tunewise.measures.finished import FinishedRun
    from tunewise.models.load import model_folder
    from tunewise.tasks.build import build_task

    if samples is not None or classes is not None:
        raise SpecError("a run knows its examples and classes; --samples and --classes are for adapters")
    spec = record.spec
    if base is not None:
        model_folder(spec.model.model_copy(update={"path": base}), "--base")  # raises where it can't be had
        record = record.model_copy(
            update={"spec": spec.model_copy(update={"model": spec.model.model_copy(update={"path": base})})}
        )
    folder = target.resolve()
    run = FinishedRun(record, folder, build_task(record.spec), folder.parent / "cache")
    values = bounds_of_run(run, lambda: None, input_bound=input_bound, with_curvature=step_size)
    return {
        "of": f"{record.spec.method.label}, seed {record.spec.seed}, run {record.id}",
        **values.model_dump(mode="json"),
    }


def _of_adapter(
    target: Path, base: str | None, samples: int | None, classes: int | None, input_bound: float | None
) -> dict[str, Any]:
    from tunewise.locate import cache_folder
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
    values = bounds_of_adapter(
        folder, model, cache=cache_folder(), samples=samples, classes=classes, input_bound=input_bound
    )
    return {"of": str(target), **values.model_dump(mode="json")}


def _show(values: dict[str, Any]) -> None:
    """Two lines a number, so that a narrow terminal holds them; assumptions are listed once and named by number, those
    that fail here by letter."""
    from rich.console import Console

    from tunewise.theory import MARKS

    console = Console(highlight=False)
    facts, gap = values["facts"], values.get("gap")
    console.print(values["of"], style="bold", markup=False)
    if gap is not None:
        console.print(
            f"measured gap of the loss clipped to [0, {gap['range']:.4g}]: {gap['gap']:.4g} nats (test "
            f"{gap['test']:.4g}, train {gap['train']:.4g}; standard error over items {gap['error']:.2g})",
            markup=False,
        )
    console.print(
        f"{len(facts['layers'])} changed layers; input bound {facts['input_bound']:.4g}: {facts['input_bound_source']}"
    )
    console.print()
    assumed: dict[str, str] = {}
    failing: dict[str, str] = {}
    for line in values["lines"]:
        numbers = [assumed.setdefault(a, str(len(assumed) + 1)) for a in line["assumptions"]]
        letters = [failing.setdefault(u, chr(ord("a") + len(failing))) for u in line["unmet"]]
        verdict = ", vacuous" if line["vacuous"] else ""
        units = _UNITS.get(line["units"], f" {line['units']}")
        console.print(f"{line['title']}: [bold]{_number(line)}[/bold]{units}{verdict}")
        notes = [line["source"], line["mark"], *([f"assumes {' '.join(numbers)}"] if numbers else [])]
        notes += [f"not met: {' '.join(letters)}"] if letters else []
        console.print(f"    {'; '.join(notes)}", style="dim", markup=False)
    if failing:
        console.print(
            "\nNot met here, or not known to be: the number is what the formula gives, and no bound", style="bold"
        )
        _listed(console, failing)
    console.print("\nAssumptions", style="bold")
    _listed(console, assumed)
    console.print("\nMarks", style="bold")
    for mark in dict.fromkeys(line["mark"] for line in values["lines"]):
        console.print(f"  {mark}: {MARKS[mark]}", markup=False)
    for missing in values.get("missing", ()):
        console.print(f"\n{missing}", markup=False)


def _listed(console: Console, reasons: dict[str, str]) -> None:
    for reason, name in reasons.items():
        console.print(f"  {name:>2}  {reason}", markup=False)


def _number(line: dict[str, Any]) -> str:
    if line["value"] is None:
        return f"e^{line['log_value']:.5g}"
    return str(line["value"]) if isinstance(line["value"], int) else f"{line['value']:.4g}"
