"""`tunewise lab`: each theorem as an experiment, with a stated expectation and a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tunewise.papers.lab.results import Result


def lab(
    name: Annotated[str | None, typer.Argument(help="An experiment, or all; without one they are listed.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    full: Annotated[
        bool, typer.Option("--full", help="Larger sizes and more repetitions: minutes, not seconds.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Results and plots go to OUT/NAME.")] = Path("lab"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the machine-readable results.")] = False,
) -> None:
    """Test the theorems numerically, on a CPU: expectation, plot, verdict.

    Leaves with 1 where a theorem is refuted.
    """
    from tunewise.papers.lab.registry import STATEMENTS, get_statement

    if name is None:
        _list(as_json)
        return
    names = list(STATEMENTS) if name == "all" else [get_statement(name).name]

    from tunewise.quiet import quiet_libraries

    quiet_libraries()
    from rich.console import Console

    console = Console(stderr=as_json)
    with console.status("starting ...") as status:
        from tunewise.papers.lab.contract import LabSettings
        from tunewise.papers.lab.results import as_data, make_folder, run_experiment, write_result

        settings = LabSettings(seed=seed, scale="full" if full else "quick")
        results = []
        for each in names:
            status.update(f"{each} ...")
            make_folder(out, each)
            result = run_experiment(each, settings)
            place = write_result(result, out)
            results.append(result)
            if not as_json:
                _show(result, place, console)
    if as_json:
        import json

        data = [as_data(result) for result in results]
        print(json.dumps(data if name == "all" else data[0], ensure_ascii=False))
    if any(result.verdict == "refuted" for result in results):
        raise typer.Exit(1)


def _list(as_json: bool) -> None:
    from tunewise.papers.lab.registry import STATEMENTS

    if as_json:
        import json
        from dataclasses import asdict

        print(json.dumps([asdict(s) for s in STATEMENTS.values()], ensure_ascii=False))
        return
    from rich.console import Console

    console = Console()
    for s in STATEMENTS.values():
        console.print(s.name, style="bold", highlight=False)
        console.print(f"  {s.theorem}  ({s.source}; {s.mark})", highlight=False, markup=False)
        console.print(f"  expected: {s.expectation}", style="dim", highlight=False, markup=False)


def _show(result: Result, place: Path, console: object) -> None:
    from rich.console import Console
    from rich.table import Table

    from tunewise.number_format import seconds
    from tunewise.papers.lab.results import finding_row

    assert isinstance(console, Console)
    colour = {"confirmed": "green", "refuted": "red", "inconclusive": "yellow"}
    console.print(
        f"[bold]{result.statement.name}[/bold]  [{colour[result.verdict]}]{result.verdict}[/]", highlight=False
    )
    console.print(f"  {result.statement.expectation}", style="dim", highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("finding", "measured", "interval", "expected", "verdict"):
        table.add_column(title, justify="left" if title in ("finding", "verdict") else "right")
    for finding in result.measurement.findings:
        row = finding_row(finding)
        verdict = f"[{colour.get(row['verdict'], 'dim')}]{row['verdict']}[/]"
        table.add_row(row["what"], row["value"], row["interval"], row["expected"], verdict)
    console.print(table, highlight=False)
    console.print(f"  {seconds(result.seconds)}; plot {place / 'plot.html'}\n", highlight=False, soft_wrap=True)
