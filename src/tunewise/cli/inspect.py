"""`tunewise inspect`: what an adapter did to each weight: spectra and intruder dimensions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from tunewise.cli import flags
from tunewise.cli.locating import run_or_adapter
from tunewise.errors import SpecError
from tunewise.registry import TASKS
from tunewise.spec import DataSpec, StudySpec, parse

if TYPE_CHECKING:
    from rich.console import Console

    from tunewise.inspecting import Inspection


@flags.spec_flags(StudySpec, only=("data", "task", "text", "text_pair", "label"))
def inspect(
    given: flags.Given,
    adapter: flags.RunOrAdapter | None = None,
    /,
    *,
    base: Annotated[str | None, Parameter(help="Pretrained model; the one that the run or adapter names.")] = None,
    model_b: Annotated[str | None, Parameter(help="Instead of an adapter: a fine-tuned model, against --base.")] = None,
    top_k: Annotated[str, Parameter(help="Singular vectors of each weight: a number, or all.")] = "10",
    threshold: Annotated[
        float,
        Parameter(validator=Number(gt=0, lte=1), help="A vector with a largest |cos| below this is an intruder."),
    ] = 0.6,
    scale: Annotated[
        str | None,
        Parameter(help="Evaluate the loss with the intruders' singular values times these factors: 0,0.5,1,2."),
    ] = None,
    runs: flags.RunsFolder = Path("runs"),
    as_json: flags.Json = False,
    report: Annotated[Path | None, Parameter(help="Also write a page that works offline.")] = None,
) -> None:
    """Analyse an adapter, or the difference of two models."""
    if adapter is not None:
        adapter = run_or_adapter(adapter, runs)
    count, factors = _top_k(top_k), _factors(scale)
    data = parse(DataSpec, given["data"]) if given.get("data") else None

    from tunewise.quiet import quiet_libraries

    quiet_libraries()
    from rich.console import Console

    with Console(stderr=True).status("starting ...") as status:
        from tunewise.inspecting import inspect as analyse

        result = analyse(
            adapter,
            base=base,
            model_b=model_b,
            top_k=count,
            threshold=threshold,
            scale=factors,
            data=data,
            task=TASKS.check(given["task"]) if "task" in given else None,
            on_phase=lambda phase: status.update(f"{phase} ..."),
        )
    if as_json:
        print(json.dumps(result.as_data(), indent=1, allow_nan=False))
    else:
        _show(result, Console(highlight=False))
    if report is not None:
        from tunewise.report.inspect_page import write_inspect_page

        write_inspect_page(result, report)
        Console(stderr=as_json).print(f"report: {report}", highlight=False, soft_wrap=True)


def _top_k(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdigit() or int(text) < 1:
        raise SpecError(f"--top-k {text}: give a number from 1 on, or all")
    return int(text)


def _factors(text: str | None) -> list[float]:
    try:
        factors = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise SpecError(f"--scale {text}: give numbers with commas, as in 0,0.5,1,2") from None
    if not all(0 <= factor < float("inf") for factor in factors):
        raise SpecError(f"--scale {text}: factors are numbers from 0 on")
    return factors


def _show(result: Inspection, console: Console) -> None:
    from tunewise.cli.tables import rich_table
    from tunewise.report.inspect_page import layer_rows, scaled_rows, threshold_rows, total_lines

    console.print(result.of, style="bold", markup=False, soft_wrap=True)
    console.print(f"base {result.base}, {result.family}\n", style="dim", markup=False, soft_wrap=True)
    for title, (columns, rows) in (
        ("", layer_rows(result, narrow=True)),
        ("Intruders by threshold", threshold_rows(result)),
        ("Intruders scaled", scaled_rows(result)),
    ):
        if not rows:
            continue
        if title:
            console.print(f"\n{title}", style="bold")
        console.print(rich_table(columns, rows), markup=False)
        if not title:
            console.print("", *total_lines(result), sep="\n", markup=False)
