"""`tunewise inspect`: what an adapter, whoever made it, did to each weight: spectra and intruder dimensions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunewise.cli.found import RUN_OR_ADAPTER, run_or_adapter
from tunewise.errors import SpecError
from tunewise.registry import TASKS

if TYPE_CHECKING:
    from rich.console import Console

    from tunewise.inspecting import Inspection
    from tunewise.spec import DataSpec

_DATA = "The loss at --scale"
_OUT = "Output"


def inspect(
    adapter: Annotated[
        Path | None, typer.Argument(help=RUN_OR_ADAPTER + " Any PEFT method that changes weights.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The pretrained model.  [default: the one that the run or adapter names]")
    ] = None,
    model_b: Annotated[
        str | None, typer.Option("--model-b", help="Instead of an adapter: a fine-tuned model, against --base.")
    ] = None,
    top_k: Annotated[str, typer.Option(help="Singular vectors of each weight to look at: a number, or all.")] = "10",
    threshold: Annotated[
        float, typer.Option(help="A vector is an intruder where its largest |cos| is below this, in (0, 1].")
    ] = 0.6,
    scale: Annotated[
        str | None, typer.Option(help="Causal check: factors on the intruders' singular values, as in 0,0.5,1,2.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Labelled data to take it on.  [default: the run's test split]", rich_help_panel=_DATA),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="What it is for, where its form does not tell: text, image, causal, ...", rich_help_panel=_DATA
        ),
    ] = None,
    text: Annotated[str, typer.Option(help="Column of the texts.", rich_help_panel=_DATA)] = "text",
    text_pair: Annotated[str | None, typer.Option(help="Column of second texts.", rich_help_panel=_DATA)] = None,
    label: Annotated[str, typer.Option(help="Column of the labels.", rich_help_panel=_DATA)] = "label",
    runs: Annotated[Path, typer.Option(help="The runs folder, for a run by its id.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.", rich_help_panel=_OUT)] = False,
    report: Annotated[
        Path | None, typer.Option(help="Also write a page that works offline.", rich_help_panel=_OUT)
    ] = None,
) -> None:
    """Look inside an adapter: singular values of what was learnt, effective ranks, intruder dimensions.

    Its base model's weights are decomposed once and kept for the next adapter.
    """
    if adapter is not None:
        adapter = run_or_adapter(adapter, runs)
    chosen = _top_k(top_k)
    factors = _factors(scale)
    columns = None if data is None else _data(data, text, text_pair, label)

    from tunewise.quiet import quiet_libraries

    quiet_libraries()
    from rich.console import Console

    console = Console(highlight=False)
    with Console(stderr=True).status("starting ...") as status:
        from tunewise.inspecting import inspect as look

        found = look(
            adapter,
            base=base,
            model_b=model_b,
            top_k=chosen,
            threshold=threshold,
            scale=factors,
            data=columns,
            task=TASKS.check(task) if task else None,
            on_phase=lambda phase: status.update(f"{phase} ..."),
        )
    if as_json:
        import json

        typer.echo(json.dumps(found.as_data(), indent=1, allow_nan=False))
    else:
        _show(found, console)
    if report is not None:
        from tunewise.report.inspect_page import write_inspect_page

        write_inspect_page(found, report)
        typer.echo(f"report: {report}", err=as_json)


def _top_k(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdigit() or int(text) < 1:
        raise SpecError(f"--top-k {text}: give a whole number from 1 on, or all")
    return int(text)


def _factors(text: str | None) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise SpecError(f"--scale {text}: give numbers with commas, as in 0,0.5,1,2") from None
    if not all(0 <= factor < float("inf") for factor in found):
        raise SpecError(f"--scale {text}: factors are numbers from 0 on")
    return found


def _data(path: Path, text: str, text_pair: str | None, label: str) -> DataSpec:
    from tunewise.spec import DataSpec

    return DataSpec(path=str(path), text=text, text_pair=text_pair, label=label)


def _show(found: Inspection, console: Console) -> None:
    from rich.table import Table

    from tunewise.report.inspect_page import layer_rows, scaled_rows, threshold_rows, total_lines

    console.print(found.of, style="bold", markup=False, soft_wrap=True)
    console.print(f"base {found.base}, {found.family}", style="dim", markup=False, soft_wrap=True)
    console.print()
    for title, (columns, rows) in (
        ("", layer_rows(found, narrow=True)),
        ("Intruders by threshold", threshold_rows(found)),
        ("Intruders scaled", scaled_rows(found)),
    ):
        if not rows:
            continue
        if title:
            console.print(f"\n{title}", style="bold")
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table, markup=False)
        if not title:
            console.print()
            for line in total_lines(found):
                console.print(line, markup=False)
