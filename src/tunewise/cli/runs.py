"""`tunewise runs`: list, show, clean and verify the run folders. None of it imports torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tunewise.cli import flags
from tunewise.errors import SpecError

_Runs = Annotated[Path, Parameter(help="The runs folder.")]
_Run = Annotated[str, Parameter(help="Beginning of a run's id, or its folder.")]


def runs_ls(
    runs: _Runs = Path("runs"),
    /,
    *,
    method: Annotated[str | None, Parameter(help="Names, separated by commas.")] = None,
    status: Annotated[
        str | None, Parameter(help="done, running, unfinished, diverged, oom, failed, unreadable.")
    ] = None,
    model: Annotated[str | None, Parameter(help="A part of the model's path.")] = None,
    where: Annotated[
        list[str] | None,
        Parameter(negative=(), help="KEY=VALUE of a column or of the spec: epochs=3. May be repeated."),
    ] = None,
    sort: Annotated[str, Parameter(help="A column; with a minus before it in descending order.")] = "started",
    as_json: flags.Json = False,
) -> None:
    """Print one line per run."""
    from tunewise.cli.tables import lines_of, summary_of
    from tunewise.store.filters import ordered, plain, selected
    from tunewise.store.table import table

    _check_folder(runs)
    rows = table(runs)
    kept = ordered(selected(rows, method=method, status=status, model=model, where=where or ()), sort)
    if as_json:
        print(json.dumps([plain(row) for row in kept], indent=1))
    else:
        ids = [row.id for row in rows]
        print(*lines_of(kept, ids), summary_of(kept, len(rows), runs), sep="\n")


def runs_show(run: _Run, runs: _Runs = Path("runs"), /, *, as_json: flags.Json = False) -> None:
    """Print what is known about a run."""
    import yaml

    from tunewise.cli.one_run import collect_facts
    from tunewise.store.lookup import find_run

    facts = collect_facts(*find_run(run, runs))
    if as_json:
        print(json.dumps(facts, indent=1))
    else:
        present = {key: value for key, value in facts.items() if value not in (None, {}, [])}
        print(yaml.safe_dump(present, sort_keys=False, allow_unicode=True, width=1000), end="")


def runs_gc(
    runs: _Runs = Path("runs"),
    /,
    *,
    yes: Annotated[flags.Switch, Parameter(help="Remove it; without this flag it is only listed.")] = False,
    all_unfinished: Annotated[
        flags.Switch, Parameter(help="Also unfinished runs with checkpoints; they start from step 0 again.")
    ] = False,
    caches: Annotated[
        flags.Switch, Parameter(help="Also what is cached of base models; it is computed again when needed.")
    ] = False,
) -> None:
    """Remove what is not needed any more."""
    from tunewise.cli.tables import aligned
    from tunewise.store.files import size
    from tunewise.store.folders import RunStore
    from tunewise.store.garbage import leftovers, remove

    _check_folder(runs)
    store = RunStore(runs)
    items = leftovers(store, unfinished=all_unfinished, caches=caches)
    if not items:
        print(f"nothing to remove in {runs}")
        return
    total = sum(item.bytes for item in items)
    lines = [[size(item.bytes), str(item.path.relative_to(runs)), item.why] for item in items]
    print(*aligned(lines, right=(0,)), f"{size(total)} in all{'' if yes else '; --yes removes them'}", sep="\n")
    if yes:
        freed, stayed = remove(store, items)
        print(*stayed, f"{size(freed)} removed", sep="\n")


def runs_verify(
    runs: _Runs = Path("runs"),
    /,
    *,
    fix: Annotated[
        flags.Switch, Parameter(help="Move the records of damaged runs aside, so that they are run again when needed.")
    ] = False,
) -> int:
    """Check the files of all finished runs."""
    from tunewise.store.folders import RunStore
    from tunewise.store.verification import faults_beside, faults_of_run, repair
    from tunewise.text_format import pluralize

    _check_folder(runs)
    store = RunStore(runs)
    ids = store.ids()
    running = [run_id for run_id in ids if store.is_locked(run_id)]
    faults = [fault for run_id in ids if run_id not in running for fault in faults_of_run(store, run_id)]
    faults += faults_beside(runs)
    for fault in faults:
        print(fault)
    damaged = len({fault.run for fault in faults})
    skipped = f"; {len(running)} in progress were left out" if running else ""
    result = f"{pluralize(len(faults), 'fault')} in {pluralize(damaged, 'folder')}" if faults else "no faults"
    print(f"{pluralize(len(ids) - len(running), 'run')} checked: {result}{skipped}")
    if fix:
        for line in repair(store, faults):
            print(line)
    elif any(fault.repair for fault in faults):
        print("`tunewise runs verify --fix` moves damaged files aside, so that they are made again")
    return 3 if faults else 0


def _check_folder(runs: Path) -> None:
    if not runs.is_dir():
        raise SpecError(f"{runs}: there is no such folder; give the one that `tunewise compare --out` wrote to")
