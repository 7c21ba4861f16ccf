"""`tunewise compare`: methods x seeds on one model and data set, and which to use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewise.errors import SpecError, nearest

if TYPE_CHECKING:
    from tunewise.comparison import Comparison
    from tunewise.planning import Plan, PlannedMethod

_Text = Annotated[str | None, typer.Option()]


def compare(
    task: Annotated[
        str | None,
        typer.Option(help="text, image, causal, generation, regression or choice.  [default: by the form of the data]"),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder, hub id, or package:MODULE/path.")] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision to pin.")] = None,
    trust_remote_code: Annotated[
        bool | None, typer.Option("--trust-remote-code", help="Run code that a hub model brings along.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Training file: csv, tsv, jsonl, parquet (also .gz), or a folder of class folders; "
            "hub:OWNER/NAME/FILE for one of a hub's data sets."
        ),
    ] = None,
    validation: Annotated[str | None, typer.Option(help="Validation file; cut from train unless given.")] = None,
    test: Annotated[str | None, typer.Option(help="Test file; cut from train unless given.")] = None,
    text: Annotated[str | None, typer.Option(help="Name of the text column.  [default: text]")] = None,
    text_pair: Annotated[str | None, typer.Option(help="Name of the second text column, for pairs.")] = None,
    label: Annotated[str | None, typer.Option(help="Name of the label column.  [default: label]")] = None,
    image: Annotated[
        str | None, typer.Option(help="Name of the column of images, or of their paths.  [default: found by its name]")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Pixels a side that images are shown at.  [default: the model's own]")
    ] = None,
    choices: Annotated[
        str | None, typer.Option(help="Column of lists of answers, or several columns with commas: multiple choice.")
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(help="Of the files; several are tried in turn: utf-8,latin-1.  [default: utf-8]"),
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Names from the catalog, with commas: lora,cla,paca.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of all methods.  [default: 8]")] = None,
    alpha: Annotated[float | None, typer.Option(help="The scale is alpha / rank.  [default: 2 x rank]")] = None,
    targets: Annotated[
        str | None,
        typer.Option(help="Layers: qv, attention, all-linear, or names with commas.  [default: qv]"),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Only in these blocks: 'last 2', or numbers from 0 with commas.  [default: all]")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="How many, or a list with commas.  [default: 3]")] = None,
    epochs: Annotated[int | None, typer.Option(help="[default: 3]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="[default: 16]")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of all methods; each method's own default unless given.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="[default: 0]")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens a text is cut to.  [default: 128]")] = None,
    prefix_dropout: Annotated[
        bool | None,
        typer.Option(
            "--prefix-dropout/--no-prefix-dropout",
            help="Dropout in the frozen blocks below the first trained one, too.",
        ),
    ] = None,
    cache_prefix: Annotated[
        bool | None,
        typer.Option("--cache-prefix", help="Compute those blocks once for each example (without dropout in them)."),
    ] = None,
    linearised: Annotated[
        bool | None, typer.Option("--linearised", help="Train the network's linearisation at W0 (the NTK regime).")
    ] = None,
    train_size: Annotated[int | None, typer.Option(help="Train on this many examples only.")] = None,
    validation_size: Annotated[int | None, typer.Option(help="Validate on this many examples only.")] = None,
    test_size: Annotated[int | None, typer.Option(help="Test on this many examples only.")] = None,
    tune: Annotated[
        int | None, typer.Option(help="Search each method's learning rate first: so many trials each; 0 for none.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Method that the others are tested against.  [default: lora]")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Main metric; the task's own, accuracy say, unless given.")] = None,
    select: Annotated[
        str | None, typer.Option(help="The epoch kept: lowest validation loss or best metric.  [default: loss]")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="A spec that comes with tunewise: quickstart.")] = None,
    spec: Annotated[Path | None, typer.Option(help="YAML file with any of these flags; flags given here win.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where runs and report go.  [default: runs]")] = None,
    costs: Annotated[
        bool | None, typer.Option("--costs/--no-costs", help="Measure step time and memory after the runs.")
    ] = None,
    measures: Annotated[
        str | None, typer.Option(help="Made of every finished run: names with commas, or none.")
    ] = None,
    trajectory: Annotated[
        int | None, typer.Option(help="Snapshots that each run keeps of its way, for measures that follow it.")
    ] = None,
    trajectory_full: Annotated[
        bool | None,
        typer.Option("--trajectory-full", help="Of full fine-tuning too: a model's size for each snapshot."),
    ] = None,
    landscape_grid: Annotated[
        int | None, typer.Option(help="Points a side of a loss landscape.  [default: 51]")
    ] = None,
    landscape_kind: Annotated[
        str | None, typer.Option(help="Its planes: random, pca (of the trajectory), or random,pca.  [default: random]")
    ] = None,
    landscape_batches: Annotated[
        int | None, typer.Option(help="Batches of training examples it is evaluated on.  [default: 4]")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Train finished runs that kept no trajectory once more, with one.")
    ] = False,
    track: Annotated[
        str | None, typer.Option(help="Report to trackers as well: tensorboard, wandb, trackio, with commas.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Start where memory or disk look too small, all the same.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that do runs side by side, one thread each.  [default: all in this one]"),
    ] = None,
    pack: Annotated[
        int | None, typer.Option(min=1, help="Runs that are batched over one frozen backbone.  [default: 1]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
) -> None:
    """Train several methods over seeds, measure them side by side, recommend one, write report.html.

    The same command again does what is missing, and only that.
    """
    given = {
        "task": task,
        "model": {"path": model, "revision": revision, "trust_remote_code": trust_remote_code},
        "data": {
            "path": data,
            "validation": validation,
            "test": test,
            "text": text,
            "text_pair": text_pair,
            "label": label,
            "image": image,
            "image_size": image_size,
            "choices": choices,
            "encoding": encoding,
            "train_size": train_size,
            "validation_size": validation_size,
            "test_size": test_size,
        },
        "training": {
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "max_length": max_length,
            "prefix_dropout": prefix_dropout,
            "linearised": linearised,
            "select": select,
        },
        "methods": methods,
        "rank": rank,
        "alpha": alpha,
        "targets": targets.split(",") if targets and "," in targets else targets,
        "layers": layers,
        "seeds": _seeds(seeds),
        "tuning": {"trials": tune},
        "reference": reference,
        "metric": metric,
        "measures": measures,
        "measure_settings": {
            "landscape": {"grid": landscape_grid, "kinds": landscape_kind, "batches": landscape_batches}
        },
        "trajectory": trajectory,
        "trajectory_full": trajectory_full,
        "cache_prefix": cache_prefix,
        "out": str(out) if out else None,
        "costs": costs,
        "jobs": jobs,
        "pack": pack,
    }
    from tunewise.spec import CompareSpec, load_yaml, merged, parse

    content: dict[str, Any] = {}
    if preset:
        content = load_yaml(_preset(preset))
    if spec:
        content = merged(content, load_yaml(spec))
    content = merged(content, given)
    content["methods"] = _flags_win(content.get("methods"), given)
    folder = str(content.pop("out", None) or "runs").rstrip("/")
    with_costs = content.pop("costs", True)
    at_once = {
        "jobs": _count("jobs", content.pop("jobs", None)),
        "pack": _count("pack", content.pop("pack", None)) or 1,
    }
    trackers = _trackers(track, content.pop("track", None))
    title = content.pop("title", None) or "Which fine-tuning method?"
    for name, flag in (("model", "--model"), ("data", "--data"), ("methods", "--methods")):
        if not content.get(name):
            raise SpecError(f"{name!r} is missing: give {flag}, a --spec file, or --preset quickstart")
    checked = parse(CompareSpec, content, source=str(spec) if spec else "")

    from tunewise.quiet import quiet_libraries

    quiet_libraries()
    from rich.console import Console

    from tunewise.cli.progress import LiveProgress

    console = Console()
    with console.status("reading data and model ..."):
        from tunewise.comparison import compare as run_compare
        from tunewise.jobs.execute import check_options
        from tunewise.planning import make_plan
        from tunewise.store.folders import RunStore
        from tunewise.training.tracking import check_trackers

        check_trackers(trackers)
        plan = make_plan(checked, RunStore(folder), again=again)
        check_options(plan, **at_once, track=trackers)
    _show_plan(plan, console, str(folder))
    if plan.without_trajectory and not again:
        count = len(plan.without_trajectory)
        console.print(f"{count} finished runs kept no trajectory; --again trains them anew with one", highlight=False)
    if plan.spec.tuning is not None:
        from tunewise.tuning import waiting_trials

        trials = waiting_trials(plan, RunStore(folder))
        console.print(f"{trials} trials for the learning rates come first", highlight=False)
    if at_once["pack"] > 1:
        _show_packs(plan, at_once["pack"], console)
    if dry_run:
        if not force:
            from tunewise.preflight import check_room, wanted_of

            check_room(wanted_of(plan), Path(folder), at_once=at_once["jobs"] or 1)
        return
    with LiveProgress(console, plan) as listener:
        found = run_compare(
            checked,
            folder,
            title=title,
            costs=with_costs,
            listener=listener,
            plan=plan,
            again=again,
            track=trackers,
            force=force,
            **at_once,
        )
    _show_result(found, console)


def _trackers(flag: str | None, from_file: Any) -> list[str]:
    """Names from `--track a,b`, or from a spec file: a name, names with commas, or a list."""
    said = flag or from_file or []
    return [name.strip() for name in said.split(",") if name.strip()] if isinstance(said, str) else list(said)


def _count(key: str, number: Any) -> Any:
    """From a flag or a spec file: a whole number from 1, or nothing."""
    if number is not None and (type(number) is not int or number < 1):
        raise SpecError(f"{key} = {number!r}: a whole number from 1 is needed")
    return number


def _show_packs(plan: Plan, most: int, console: Any) -> None:
    """Which runs go together, and why others do not."""
    from tunewise.jobs.execute import packs_of

    found = packs_of(plan, most)
    together = [pack for pack in found if len(pack.runs) > 1]
    if together:
        count = sum(len(pack.runs) for pack in together)
        packs = f"{len(together)} packs, each" if len(together) > 1 else "one pack"
        console.print(f"{count} runs in {packs} over one backbone", highlight=False)
    for label, why in {pack.runs[0].method.label: pack.why for pack in found if pack.why is not None}.items():
        console.print(f"  - {label} by itself: it {why}", style="dim", highlight=False, markup=False)


def _flags_win(methods: Any, given: dict[str, Any]) -> Any:
    """A flag for all methods stands above what a spec file says of one."""
    flags = {key: given[key] for key in ("rank", "alpha", "targets", "layers") if given[key] is not None}
    if given["training"]["learning_rate"] is not None:
        flags["learning_rate"] = None
    if not flags or not isinstance(methods, list):
        return methods
    return [{k: v for k, v in m.items() if k not in flags} if isinstance(m, dict) else m for m in methods]


def _seeds(text: str | None) -> Any:
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise SpecError(f"--seeds {text!r}: give how many (3), or a list (0,1,2)") from None
    if "," not in text and numbers[0] < 1:
        raise SpecError(f"--seeds {text}: at least one is needed")
    return numbers if "," in text else numbers[0]


def _preset(name: str) -> Path:
    folder = Path(__file__).parent.parent / "presets"
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    if name not in known:
        raise SpecError(f"unknown preset {name!r}{nearest(name, known)}")
    return folder / f"{name}.yaml"


def _show_plan(plan: Plan, console: Any, folder: str) -> None:
    from rich.table import Table

    data = plan.data
    todo = len(plan.runs) - len(plan.done)
    console.print(
        f"[bold]{len(plan.methods)} methods x {len(plan.spec.seeds)} seeds[/bold] on {plan.spec.model.path}: "
        f"{data.train:,} training, {data.validation:,} validation, {data.test:,} test examples"
        f"{f', {len(data.labels)} classes' if data.labels else ''}; {plan.steps:,} steps a run",
        highlight=False,
    )
    for note in data.notes:
        console.print(f"  - {note}", style="dim", highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, right in (
        ("method", False),
        ("trained", True),
        ("adapter", True),
        ("head", True),
        ("share", True),
        ("rate", True),
    ):
        table.add_column(name, justify="right" if right else "left")
    for planned in plan.methods:
        facts = planned.facts
        table.add_row(
            planned.method.label,
            f"{facts.trainable:,}",
            f"{facts.adapter:,}",
            f"{facts.head:,}",
            f"{facts.trainable / facts.parameters:.3%}",
            _rate(planned, plan),
        )
    console.print(table)
    ready = f", {len(plan.done)} done already" if plan.done else ""
    console.print(f"{todo} runs to do{ready}; everything goes to {folder}", highlight=False)


def _rate(planned: PlannedMethod, plan: Plan) -> str:
    """The rate, or the grid that will be searched."""
    tuning = plan.spec.tuning
    method, common = planned.method.learning_rate, plan.spec.training.learning_rate
    if tuning is None or (not tuning.given and (method or common)):
        return f"{planned.learning_rate:g}" + (", given" if tuning else "")
    from tunewise.tuning.grid import first_rates

    rates = first_rates(planned.learning_rate, tuning.factor, tuning.trials)
    return f"{min(rates):g} to {max(rates):g}"


def _show_result(found: Comparison, console: Any) -> None:
    from tunewise.report.table import console_table

    console.print()
    console.print(console_table(found.summaries, found.recommendation))
    console.print()
    if found.tuning is not None:
        rates = ", ".join(
            f"{row.method} {row.chosen:g}"
            + (" (given)" if row.given else f" (the {row.edge} tried)" if row.edge else "")
            for row in found.tuning.methods
        )
        console.print(f"Learning rates: {rates}", highlight=False, markup=False)
        console.print()
    for sentence in found.recommendation.sentences:
        console.print(sentence, highlight=False, markup=False)
    console.print()
    console.print(f"report   {found.report}", highlight=False, soft_wrap=True)
    chosen = [r for r in found.records if r.spec.method.label == found.recommendation.choice and r.status == "done"]
    if chosen:
        adapter = found.folder.parent / chosen[0].id / "adapter"
        console.print(
            f"adapter  {adapter}  ({chosen[0].spec.method.label}, seed {chosen[0].spec.seed})",
            highlight=False,
            soft_wrap=True,
        )
