"""`tunewise runs`: list, show, compare, clean and verify the run folders. None of it needs torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tunewise.errors import SpecError

app = typer.Typer(
    help="List, show, compare, clean and verify finished and unfinished runs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

_Runs = Annotated[Path, typer.Argument(metavar="[RUNS]", help="The runs folder.")]
_Run = Annotated[str, typer.Argument(metavar="RUN", help="The beginning of a run's id, or its folder.")]
_Json = Annotated[bool, typer.Option("--json", help="Everything, as JSON.")]


@app.command("ls")
def ls(
    runs: _Runs = Path("runs"),
    method: Annotated[str | None, typer.Option(help="Names, with commas.")] = None,
    status: Annotated[
        str | None, typer.Option(help="done, running, unfinished, diverged, oom, pruned, failed, unreadable.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A part of the model's path.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE, a column or a key of the specification: epochs=3. Several must all fit."),
    ] = None,
    sort: Annotated[str, typer.Option(help="A column; with a minus before it from the largest down.")] = "started",
    as_json: _Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="All columns, as CSV.")] = False,
) -> None:
    """One line a run, from any number of them."""
    from tunewise.store.filters import ordered, plain, selected
    from tunewise.store.table import table

    _check_folder(runs)
    rows = table(runs)
    kept = ordered(selected(rows, method=method, status=status, model=model, where=where or ()), sort)
    if as_json:
        typer.echo(json.dumps([plain(row) for row in kept], indent=1))
    elif as_csv:
        from tunewise.cli.run_tables import csv_of

        typer.echo(csv_of(kept), nl=False)
    else:
        from tunewise.cli.narrow import room
        from tunewise.cli.run_tables import lines_of, summary_of

        ids = [row.id for row in rows]
        typer.echo("\n".join([*lines_of(kept, ids, room()), summary_of(kept, len(rows), runs)]))


@app.command("show")
def show(run: _Run, runs: _Runs = Path("runs"), as_json: _Json = False) -> None:
    """A run's specification, results, costs, measures, files, environment and problems."""
    from tunewise.cli.one_run import facts, text
    from tunewise.store.lookup import find_run

    store, run_id = find_run(run, runs)
    known = facts(store, run_id)
    typer.echo(json.dumps(known, indent=1) if as_json else text(known))


@app.command("diff")
def diff(first: _Run, second: _Run, runs: _Runs = Path("runs"), as_json: _Json = False) -> None:
    """In what two runs differ: specification, environment, results."""
    from tunewise.cli.run_tables import aligned, value
    from tunewise.store.differences import differences
    from tunewise.store.lookup import find_run, record_of

    one, two = (record_of(*find_run(name, runs)) for name in (first, second))
    found = differences(one, two)
    if as_json:
        parts: dict[str, dict[str, Any]] = {"spec": {}, "environment": {}, "results": {}}
        for each in found:
            parts[each.part][each.key] = [each.first, each.second]
        typer.echo(json.dumps({"first": one.id, "second": two.id, **parts}, indent=1))
        return
    if not found:
        typer.echo(f"{one.id} and {two.id} differ in nothing")
        return
    lines = [["", one.id, two.id]]
    for part in dict.fromkeys(each.part for each in found):
        lines.append([part, "", ""])
        lines += [[f"  {e.key}", value(e.first), value(e.second)] for e in found if e.part == part]
    typer.echo("\n".join(aligned(lines)))


@app.command("gc")
def gc(
    runs: _Runs = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what may go, and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove it without asking.")] = False,
    all_unfinished: Annotated[
        bool,
        typer.Option("--all-unfinished", help="Unfinished runs with checkpoints, too: they start from step 0 again."),
    ] = False,
    trials: Annotated[
        bool,
        typer.Option("--trials", help="Adapters of learning-rate trials, too; their records and curves stay."),
    ] = False,
    caches: Annotated[
        bool, typer.Option("--caches", help="All that measures keep of base models, too; it is made again when wanted.")
    ] = False,
) -> None:
    """Remove what nobody needs: temporary files of stopped processes, leftovers of runs without a checkpoint, caches
    and costs that no run here is about, locks that nobody holds. Never a finished run, nor one that is being run."""
    from tunewise.cli.run_tables import aligned
    from tunewise.store.files import size
    from tunewise.store.folders import RunStore
    from tunewise.store.garbage import Wanted, leftovers, remove

    _check_folder(runs)
    store = RunStore(runs)
    found = leftovers(store, Wanted(unfinished=all_unfinished, trials=trials, caches=caches))
    if not found:
        typer.echo(f"nothing to remove in {runs}")
        return
    total = sum(one.bytes for one in found)
    lines = [[size(one.bytes), str(one.path.relative_to(runs)), one.why] for one in found]
    typer.echo("\n".join([*aligned(lines, right=(0,)), f"{size(total)} in all"]))
    if dry_run:
        return
    if not yes:
        if not sys.stdin.isatty():
            raise SpecError("nothing is removed without being asked for: --yes to remove, --dry-run to look only")
        typer.confirm("Remove it?", abort=True)
    freed, stayed = remove(store, found)
    typer.echo("\n".join([*stayed, f"{size(freed)} removed"]))


@app.command("verify")
def verify(
    runs: _Runs = Path("runs"),
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Move the records of damaged runs aside, so that they are run again when wanted."),
    ] = False,
) -> None:
    """Check that all finished runs are as they were written: records, checksums, histories, adapters, measures,
    trajectories. One line a fault; exit code 3 where there is any."""
    from tunewise.store.folders import RunStore
    from tunewise.store.verification import faults_beside, faults_of_run, mend
    from tunewise.tasks.splits import pluralize

    _check_folder(runs)
    store, found, checked, locked = RunStore(runs), [], 0, 0
    for run_id in store.ids():
        if store.is_locked(run_id):
            locked += 1
            continue
        faults = faults_of_run(store, run_id)
        checked += 1
        found += faults
        for fault in faults:
            typer.echo(str(fault))
    beside = faults_beside(runs)
    for fault in beside:
        typer.echo(str(fault))
    found += beside
    damaged = len({fault.run for fault in found})
    skipped = f"; {locked} being run now were left out" if locked else ""
    said = f"{pluralize(len(found), 'fault')} in {pluralize(damaged, 'folder')}" if found else "all as written"
    typer.echo(f"{pluralize(checked, 'run')} checked: {said}{skipped}")
    if found:
        if fix:
            for line in mend(store, found):
                typer.echo(line)
        elif any(fault.mends for fault in found):
            typer.echo("`tunewise runs verify --fix` marks what is damaged to be made again")
        raise typer.Exit(3)


def _check_folder(runs: Path) -> None:
    if not runs.is_dir():
        raise SpecError(f"{runs}: there is no such folder; give the one that `tunewise compare --out` wrote to")
