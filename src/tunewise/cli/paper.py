"""`tunewise paper`: the experiments of arXiv 2606.13767 as presets, and its printed tables beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from tunewise.cli import flags
from tunewise.errors import SpecError
from tunewise.spec import ExecutionOptions, StudySpec, merge_specs, parse, split_options

if TYPE_CHECKING:
    from tunewise.papers.sheet import Sheet

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
    content = comparison(chosen, setting, _names(methods) or None)
    content = merge_specs(content, {**given, "seeds": _seeds(given.get("seeds"), content["seeds"])})

    from tunewise.cli.compare import run_comparison
    from tunewise.papers.prepare import prepare
    from tunewise.papers.runs import PaperNote, changes, write_note

    data = prepare(chosen.data, source, data_revision).model_copy(update=sizes)
    study = parse(StudySpec, {**content, "data": data.model_dump(mode="json")})
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
    form: Annotated[
        Literal["csv", "tex", "html", "md"] | None, Parameter("--format", help="By the ending of --out, or a table.")
    ] = None,
    out: Annotated[Path | None, Parameter(help="File to write; its ending gives the format.")] = None,
    everything: Annotated[bool, Parameter("--all", negative=(), help="Printed cells without runs here, too.")] = False,
    preset: Annotated[str, Parameter(help="Table 1: model and data set of the bounds.")] = "vit-base/cifar10",
    samples: Annotated[flags.Count, Parameter(help="Table 1: training examples.")] = 50_000,
) -> None:
    """Print or write a table."""
    from rich.console import Console

    from tunewise.errors import suggest_nearest
    from tunewise.papers.render import FORMS, show
    from tunewise.quiet import quiet_libraries

    chosen = form or (out.suffix.removeprefix(".").lower() if out else None)
    if chosen is not None and chosen not in FORMS:
        raise SpecError(f"format {chosen!r}{suggest_nearest(chosen, FORMS)}")
    quiet_libraries()
    sheet = _sheet(number, runs, everything, preset, samples)
    if chosen is None:
        show(sheet, Console())
    elif out is None:
        print(FORMS[chosen](sheet), end="")
    else:
        from tunewise.store.files import write_atomically

        write_atomically(out, FORMS[chosen](sheet))
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
        sources[chosen.data.key] = prepare(chosen.data, source).model_copy(update=sizes)
    content = sweep(
        which,
        sources,
        presets=names,
        methods=_names(methods),
        model=given.get("model", {}).get("path"),
        seeds=_seeds(given.get("seeds"), []),
        epochs=given.get("training", {}).get("epochs"),
    )
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


def _seeds(text: str | None, preset: list[int]) -> list[int]:
    """A list; or so many of the preset's, then from 0."""
    if text is None:
        return preset
    seeds = parse(StudySpec, {"model": "-", "data": "-", "methods": "lora", "seeds": text}).seeds
    if "," in text:
        return seeds
    return [*preset, *(n for n in range(1000) if n not in preset)][: len(seeds)]


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
