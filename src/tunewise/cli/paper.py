"""`tunewise paper`: the experiments of arXiv 2606.13767 as presets, and its printed tables beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewise.cli import options
from tunewise.errors import SpecError

if TYPE_CHECKING:
    from tunewise.papers.presets import Preset
    from tunewise.papers.sheet import Sheet

app = typer.Typer(
    help="The experiments of 'Beyond LoRA' (arXiv 2606.13767): presets, and its tables beside ours.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

_Model = Annotated[str | None, typer.Option(help="Folder or hub id, instead of the preset's hub id.")]
_Data = Annotated[str | None, typer.Option(help="Folder with the set's public files, instead of its hub repository.")]


@app.command("list")
def list_presets(
    data: Annotated[
        bool, typer.Option("--data", help="The data sets instead: where each is had, how it is scored.")
    ] = False,
) -> None:
    """The 24 presets with their hyperparameters (Table 7), or the 14 data sets."""
    from rich.console import Console
    from rich.table import Table

    from tunewise.papers.presets import presets
    from tunewise.papers.sets import SETS

    console = Console()
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    if data:
        for name in ("set", "task", "score", "epoch kept", "hub"):
            table.add_column(name, overflow="fold")
        for row in SETS.values():
            kept = "lowest loss" if row.select == "loss" else f"best {row.metric}"
            table.add_row(row.key, row.task, row.metric, kept, row.hub.replace("%2F", "/"))
        console.print(table)
        return
    for name in ("preset", "ep.", "batch", "size", "schedule", "rates: fft, A and B, B", "restarts"):
        table.add_column(name, justify="right" if name in ("ep.", "batch", "size") else "left", no_wrap=True)
    seeds: dict[str, dict[str, None]] = {}
    for preset in presets():
        s = preset.settings
        restarts = (
            f"every {s.restarts}" if preset.model.restarts == "epochs between restarts" else f"{s.restarts} in all"
        )
        rates = " ".join(f"{rate:.2g}" for rate in (s.rate_all, s.rate_both, s.rate_one))
        table.add_row(preset.key, str(s.epochs), str(s.batch_size), str(s.size), s.schedule, rates, restarts)
        seeds.setdefault(", ".join(map(str, s.seeds)), {})[s.schedule] = None
    console.print(table)
    console.print(
        "\nRank 16, alpha 32, on query and value. Size: tokens or pixels. Restarts of chains: every so many epochs, or "
        "so many in the whole run. Seeds: "
        + "; ".join(f"{said} ({' or '.join(kinds)})" for said, kinds in seeds.items())
        + ".",
        highlight=False,
    )


@app.command("run")
def run_preset(
    name: Annotated[str, typer.Argument(metavar="MODEL/DATA", help="As in `tunewise paper list`: roberta-base/mrpc.")],
    methods: Annotated[str, typer.Option(help="all that the paper ran, or names with commas.")] = "all",
    table: Annotated[
        int,
        typer.Option(help="The table that it is for: 4 and 14 are all six linear layers, 5 and 15 query and value."),
    ] = 2,
    model: _Model = None,
    data: _Data = None,
    revision: options.Revision = None,
    data_revision: Annotated[str | None, typer.Option(help="Hub revision of the data to pin.")] = None,
    trust_remote_code: options.TrustRemoteCode = None,
    seeds: Annotated[str | None, typer.Option(help="How many of the preset's, or a list with commas.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the preset's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Instead of the preset's.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens, instead of the preset's.")] = None,
    image_size: options.ImageSize = None,
    train_size: options.TrainSize = None,
    validation_size: options.ValidationSize = None,
    test_size: options.TestSize = None,
    measures: options.Measures = None,
    costs: options.Costs = True,
    jobs: options.Jobs = None,
    force: options.Force = False,
    out: Annotated[Path, typer.Option(help="Where runs and report go.")] = Path("runs"),
    dry_run: options.DryRun = False,
) -> None:
    """Run a preset as an ordinary comparison. What makes it smaller than the paper's is marked in every table."""
    from tunewise.cli.compare_tables import show_plan, show_result
    from tunewise.papers.presets import SETTINGS, comparison, get_preset
    from tunewise.spec import StudySpec, merge_specs, parse

    if table not in SETTINGS:
        raise SpecError(f"--table {table}: presets are there for tables {', '.join(map(str, sorted(SETTINGS)))}")
    chosen, setting = get_preset(name), SETTINGS[table]
    asked = None if methods == "all" else [m.strip() for m in methods.split(",") if m.strip()]
    content = merge_specs(
        comparison(chosen, setting, asked),
        {
            "model": {"path": model, "revision": revision, "trust_remote_code": trust_remote_code},
            "training": {"epochs": epochs, "batch_size": batch_size, "max_length": max_length},
            "measures": measures,
        },
    )
    content["seeds"] = _seeds(seeds, content["seeds"])

    from tunewise.quiet import quiet_libraries

    quiet_libraries()
    from rich.console import Console

    from tunewise.cli.progress import LiveProgress
    from tunewise.papers.prepare import prepare

    console = Console()
    with console.status("reading data and model ..."):
        from tunewise import evidence
        from tunewise.comparison import compare
        from tunewise.papers.runs import PaperNote, changes, write_note
        from tunewise.planning import make_plan
        from tunewise.store.folders import RunStore

        sizes = {"train_size": train_size, "validation_size": validation_size, "test_size": test_size}
        source = prepare(chosen.data, data, data_revision).model_copy(update={**sizes, "image_size": image_size})
        spec = parse(StudySpec, {**content, "data": source.model_dump(mode="json")})
        store = RunStore(out)
        plan = make_plan(spec, store)
        note = PaperNote(preset=chosen.key, setting=setting, changes=changes(chosen, setting, spec, source.notes))
    show_plan(plan, console, str(out))
    if note.changes:
        console.print(
            f"differs from the paper's experiment: {'; '.join(note.changes)}", highlight=False, style="yellow"
        )
    if dry_run:
        return
    title = _title(chosen, table, bool(note.changes))
    write_note(evidence.begin(plan.spec, store, title, None), note)
    with LiveProgress(console, plan) as listener:
        done = compare(
            spec,
            out,
            title=title,
            costs=bool(costs),
            listener=listener,
            plan=plan,
            force=force,
            jobs=jobs,
        )
    show_result(done, console)


def _title(preset: Preset, table: int, changed: bool) -> str:
    subset = ", changed" if changed else ""
    return f"{' on '.join(preset.printed)}, as Table {table} of arXiv 2606.13767{subset}"


def _seeds(text: str | None, preset: list[int]) -> Any:
    said = options.seeds(text)
    if not isinstance(said, int):
        return said or preset
    return [*preset, *(n for n in range(1000) if n not in preset)][:said]


@app.command("table")
def show_table(
    number: Annotated[int, typer.Argument(metavar="N", help="1, 2, 3, 4, 5, 6, 14, 15, 16, 17 or 18.")],
    runs: Annotated[Path, typer.Option("--from", help="Folder of runs; 1 and 6 need none.")] = Path("runs"),
    form: Annotated[
        str | None, typer.Option("--format", help="csv, tex, html or md.  [default: by --out's name, or the terminal]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; its end says the form.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Printed cells without runs here, too.")] = False,
    preset: Annotated[
        str, typer.Option(help="Table 1: the model and data set that bounds are computed for.")
    ] = "vit-base/cifar10",
    samples: Annotated[int, typer.Option(help="Table 1: training examples.", min=1)] = 50_000,
) -> None:
    """Our numbers beside the printed ones, with differences and intervals."""
    from rich.console import Console

    from tunewise.errors import suggest_nearest
    from tunewise.papers.render import FORMS, show
    from tunewise.quiet import quiet_libraries

    chosen = form or (out.suffix.removeprefix(".").lower() if out else None)
    if chosen is not None and chosen not in FORMS:
        raise SpecError(f"form {chosen!r}{suggest_nearest(chosen, FORMS)}")
    quiet_libraries()
    sheet = _sheet(number, runs, everything, preset, samples)
    if chosen is None:
        show(sheet, Console())
        return
    text = FORMS[chosen](sheet)
    if out is None:
        typer.echo(text, nl=False)
        return
    from tunewise.store.files import write_atomically

    write_atomically(out, text)
    typer.echo(f"{out}: {len(sheet.rows)} rows")


def _sheet(number: int, runs: Path, everything: bool, preset: str, samples: int) -> Sheet:
    from tunewise.papers.presets import SETTINGS, get_preset

    if number == 6:
        from tunewise.papers import counts

        return counts.sheet()
    if number == 1:
        from tunewise.papers import bounds

        return bounds.sheet(get_preset(preset), samples)
    from tunewise.papers.tables import TABLES, sheet_of

    if number not in SETTINGS:
        raise SpecError(f"table {number}: there are {', '.join(map(str, TABLES))}")
    from tunewise.papers.runs import read_comparisons

    return sheet_of(number, read_comparisons(runs), everything=everything)


@app.command("sweep")
def write_sweep(
    which: Annotated[str, typer.Argument(metavar="TABLE", help="8, 9, 10, 11, 12, 13 or figure6.")],
    out: Annotated[Path | None, typer.Option(help="YAML file to write.  [default: paper-TABLE.yaml]")] = None,
    preset: Annotated[
        str | None, typer.Option(help="MODEL/DATA with commas, instead of those that the table is of.")
    ] = None,
    methods: Annotated[str, typer.Option(help="all that the axes mean something to, or names with commas.")] = "all",
    model: _Model = None,
    data: Annotated[
        str | None, typer.Option(help="Folder with the set's public files; of several sets, a folder of such, by key.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="A list with commas, or how many from 0.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the preset's.")] = None,
    train_size: options.TrainSize = None,
    validation_size: options.ValidationSize = None,
    test_size: options.TestSize = None,
) -> None:
    """Write an ablation as the specification of a sweep, for `tunewise sweep`."""
    import yaml

    from tunewise.papers.ablations import get_ablation, presets_of, sweep
    from tunewise.papers.prepare import prepare
    from tunewise.spec import StudySpec, parse, split_options
    from tunewise.store.files import write_atomically

    names = [name.strip() for name in (preset or "").split(",") if name.strip()]
    presets = presets_of(get_ablation(which), names)
    sizes = {"train_size": train_size, "validation_size": validation_size, "test_size": test_size}
    sources = {
        each.data.key: prepare(each.data, _of_set(data, each.data.key, len(presets))).model_copy(update=sizes)
        for each in presets
    }
    said = options.seeds(seeds)
    content = sweep(
        which,
        sources,
        presets=names,
        methods=[] if methods == "all" else [name.strip() for name in methods.split(",")],
        model=model,
        seeds=list(range(said)) if isinstance(said, int) else said or [],
        epochs=epochs,
    )
    runs = len(parse(StudySpec, split_options(content)[1]).runs())
    out = out or Path(f"paper-{which}.yaml")
    write_atomically(out, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110))
    typer.echo(f"{out}: {runs:,} runs; next: tunewise sweep {out} --dry-run")


def _of_set(data: str | None, key: str, sets: int) -> str | None:
    return data if data is None or sets == 1 else str(Path(data) / key)
