"""`tunewise paper`: the experiments of arXiv 2606.13767 as presets, and its printed tables beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tunewise.cli import flags
from tunewise.errors import SpecError
from tunewise.spec import DataSpec, ExecutionOptions, StudySpec, merge_specs, parse, split_options

_SIZES = ("train_size", "validation_size", "test_size")
_RUN = (
    *("model", "revision", "trust_remote_code", "data", "image_size", *_SIZES, "seeds", "epochs", "batch_size"),
    *("max_length", "measures", "costs", "jobs", "out", "force"),
)
_Methods = Annotated[str, Parameter(help="all, or names separated by commas.")]


def paper_list(
    *, data: Annotated[flags.Switch, Parameter(help="The data sets instead: source, task, metric.")] = False
) -> None:
    """Print the presets or the data sets."""
    from rich.console import Console

    from tunewise.cli.tables import aligned, rich_table
    from tunewise.papers.presets import presets
    from tunewise.papers.sets import SETS

    if data:
        columns = ("set", "task", "score", "epoch kept", "hub")
        kept = {row.key: "lowest loss" if row.select == "loss" else f"best {row.metric}" for row in SETS.values()}
        rows = [[s.key, s.task, s.metric, kept[s.key], s.hub.replace("%2F", "/")] for s in SETS.values()]
        Console().print(rich_table(columns, rows, left=columns))
        return
    rows = []
    for preset in presets():
        s = preset.settings
        per_run = preset.model.restarts != "epochs between restarts"
        restarts = f"{s.restarts} in all" if per_run else f"every {s.restarts}"
        rates = " ".join(f"{rate:.2g}" for rate in (s.rate_all, s.rate_both, s.rate_one))
        numbers = [str(s.epochs), str(s.batch_size), str(s.size)]
        rows.append([preset.key, *numbers, s.schedule, rates, restarts])
    titles = ("preset", "epochs", "batch", "size", "schedule", "rates: fft, A and B, B", "restarts")
    print(*aligned([titles, *rows], right=(1, 2, 3)), sep="\n")
    print("\nRank 16, alpha 32, on query and value. Size: tokens or pixels. Restarts of chains: in epochs or in all.")


@flags.spec_flags(StudySpec, ExecutionOptions, only=_RUN)
def paper_run(
    given: flags.Given,
    name: Annotated[str, Parameter(help="MODEL/DATA as in `tunewise paper list`: roberta-base/mrpc.")],
    /,
    *,
    methods: _Methods = "all",
    table: Annotated[
        int, Parameter(help="Table to reproduce: 4 and 14 adapt all six linear layers, 5 and 15 query and value.")
    ] = 2,
    data_revision: Annotated[str | None, Parameter(help="Hub revision of the data to pin.")] = None,
    dry_run: flags.DryRun = False,
) -> None:
    """Run a preset."""
    from tunewise.papers.presets import SETTINGS, comparison, get_preset

    if table not in SETTINGS:
        raise SpecError(f"--table {table}: there are presets for tables {', '.join(map(str, sorted(SETTINGS)))}")
    chosen, setting = get_preset(name), SETTINGS[table]
    options, given = split_options(given)
    source, sizes = _source(given)
    content = merge_specs(comparison(chosen, setting, _names(methods) or None), given)

    from tunewise.cli.compare import run_comparison
    from tunewise.papers.prepare import prepare
    from tunewise.papers.runs import PaperNote, changes, write_note

    data = prepare(chosen.data, source, data_revision)
    study = parse(StudySpec, {**content, "data": {**data.model_dump(mode="json"), **sizes}})
    note = PaperNote(preset=chosen.key, setting=setting, changes=changes(chosen, setting, study, data.notes))
    if note.changes:
        print(f"differs from the paper's experiment: {'; '.join(note.changes)}")
    title = f"{' on '.join(chosen.printed)}, as Table {table} of arXiv 2606.13767{', changed' if note.changes else ''}"
    result = run_comparison(options.model_copy(update={"title": title}), study, dry_run=dry_run)
    if result is not None:
        write_note(result.folder, note)


def paper_table(
    number: Annotated[int, Parameter(help="1, 2, 3, 4, 5, 6, 14, 15, 16, 17 or 18.")],
    /,
    *,
    runs: Annotated[Path, Parameter("--from", help="Folder of runs; tables 1 and 6 need none.")] = Path("runs"),
    out: Annotated[Path | None, Parameter(help="File to write, .csv, .md or .tex.")] = None,
    everything: Annotated[bool, Parameter("--all", negative=(), help="Printed cells without runs here, too.")] = False,
) -> None:
    """Print or write a table."""
    from rich.console import Console

    from tunewise.papers.sheet import FORMS, show
    from tunewise.papers.tables import make_sheet
    from tunewise.quiet import quiet_libraries
    from tunewise.store.files import write_atomically

    if out is not None and out.suffix not in FORMS:
        raise SpecError(f"{out}: its ending is none of {', '.join(FORMS)}")
    quiet_libraries()
    sheet = make_sheet(number, runs, everything=everything)
    if out is None:
        show(sheet, Console())
    else:
        write_atomically(out, FORMS[out.suffix](sheet))
        print(f"{out}: {len(sheet.rows)} rows")


@flags.spec_flags(StudySpec, only=("model", "data", "seeds", "epochs", *_SIZES))
def paper_sweep(
    given: flags.Given,
    which: Annotated[str, Parameter(help="Table 8, 9, 10, 11, 12, 13 or figure6.")],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="YAML file to write; paper-TABLE.yaml unless given.")] = None,
    preset: Annotated[str, Parameter(help="MODEL/DATA separated by commas, instead of those of the table.")] = "",
    methods: _Methods = "all",
) -> None:
    """Write a spec file; with several data sets, --data is a folder of their folders."""
    import yaml

    from tunewise.papers.ablations import get_ablation, presets_of, sweep
    from tunewise.papers.prepare import prepare
    from tunewise.store.files import write_atomically

    names = _names(preset)
    presets = presets_of(get_ablation(which), names)
    folder, sizes = _source(given)
    sources = {}
    for chosen in presets:
        source = folder if folder is None or len(presets) == 1 else str(Path(folder) / chosen.data.key)
        sources[chosen.data.key] = parse(DataSpec, {**prepare(chosen.data, source).model_dump(), **sizes})
    content = sweep(which, sources, presets=names, methods=_names(methods), given=given)
    runs = len(parse(StudySpec, split_options(content)[1]).runs())
    out = out or Path(f"paper-{which}.yaml")
    write_atomically(out, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110))
    print(f"{out}: {runs:,} runs; next: tunewise sweep {out} --dry-run")


def _source(given: flags.Given) -> tuple[str | None, flags.Given]:
    """Folder of the data, and the sizes that were given; both are taken out of `given`."""
    sizes = given.pop("data", {})
    return sizes.pop("path", None), sizes


def _names(text: str) -> list[str]:
    return [] if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
