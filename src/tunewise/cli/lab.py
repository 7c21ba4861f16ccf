"""`tunewise lab`: each theorem as an experiment, with a stated expectation and a verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tunewise.cli import flags

if TYPE_CHECKING:
    from rich.console import Console

    from tunewise.papers.lab.results import Result

_COLOURS = {"confirmed": "green", "refuted": "red", "inconclusive": "yellow"}


def lab(
    name: Annotated[str | None, Parameter(help="An experiment, or all; they are listed unless given.")] = None,
    /,
    *,
    seed: Annotated[int, Parameter(help="Seed of all random numbers.")] = 0,
    full: Annotated[flags.Switch, Parameter(help="Larger sizes and more repetitions: minutes, not seconds.")] = False,
    out: Annotated[Path, Parameter(help="Results and plots go to OUT/NAME.")] = Path("lab"),
    as_json: flags.Json = False,
) -> int:
    """Run the experiments."""
    from tunewise.papers.lab.registry import STATEMENTS, get_statement

    if name is None:
        _list(as_json)
        return 0
    names = list(STATEMENTS) if name == "all" else [get_statement(name).name]

    from rich.console import Console

    console, results = Console(stderr=as_json, highlight=False), []
    with console.status("starting ...") as status:
        from tunewise.papers.lab.contract import LabSettings
        from tunewise.papers.lab.results import as_data, make_folder, run_experiment, write_result

        settings = LabSettings(seed=seed, scale="full" if full else "quick")
        for experiment in names:
            status.update(f"{experiment} ...")
            make_folder(out, experiment)
            result = run_experiment(experiment, settings)
            folder = write_result(result, out)
            results.append(result)
            if not as_json:
                _show(result, folder, console)
    if as_json:
        data = [as_data(result) for result in results]
        print(json.dumps(data if name == "all" else data[0], ensure_ascii=False))
    return 1 if any(result.verdict == "refuted" for result in results) else 0


def _list(as_json: bool) -> None:
    from dataclasses import asdict

    from tunewise.papers.lab.registry import STATEMENTS

    if as_json:
        print(json.dumps([asdict(s) for s in STATEMENTS.values()], ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    for s in STATEMENTS.values():
        console.print(s.name, style="bold")
        console.print(f"  {s.theorem}  ({s.source}; {s.mark})")
        console.print(f"  expected: {s.expectation}", style="dim")


def _show(result: Result, folder: Path, console: Console) -> None:
    from tunewise.cli.tables import rich_table
    from tunewise.number_format import seconds
    from tunewise.papers.lab.results import finding_row

    console.print(f"[bold]{result.statement.name}[/bold]  [{_COLOURS[result.verdict]}]{result.verdict}[/]")
    console.print(f"  {result.statement.expectation}", style="dim", markup=False)
    rows = []
    for finding in map(finding_row, result.measurement.findings):
        verdict = f"[{_COLOURS.get(finding['verdict'], 'dim')}]{finding['verdict']}[/]"
        rows.append([*(finding[key] for key in ("what", "value", "interval", "expected")), verdict])
    console.print(rich_table(("finding", "measured", "interval", "expected", "verdict"), rows, left=("verdict",)))
    console.print(f"  {seconds(result.seconds)}; plot {folder / 'plot.html'}\n", soft_wrap=True)
