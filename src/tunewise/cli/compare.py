"""`tunewise compare`: methods x seeds on one model and data set, and which to use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewise.cli import options
from tunewise.cli.compare_tables import show_besides, show_manner, show_plan, show_result
from tunewise.errors import SpecError, suggest_nearest

if TYPE_CHECKING:
    from tunewise.spec import ExecutionOptions, StudySpec


def compare(
    context: typer.Context,
    task: options.Task = None,
    model: options.Model = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = None,
    data: options.Data = None,
    validation: options.Validation = None,
    test: options.Test = None,
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    image: options.Image = None,
    image_size: options.ImageSize = None,
    choices: options.Choices = None,
    encoding: options.Encoding = None,
    train_size: options.TrainSize = None,
    validation_size: options.ValidationSize = None,
    test_size: options.TestSize = None,
    methods: Annotated[str | None, options.methods(help="Names from the catalog, with commas: lora,cla,paca.")] = None,
    rank: options.Rank = None,
    alpha: options.Alpha = None,
    targets: options.Targets = None,
    layers: options.Layers = None,
    reference: Annotated[
        str | None, options.methods(help="Method that the others are tested against.  [default: lora]")
    ] = None,
    seeds: Annotated[str | None, options.training(help="How many, or a list with commas.  [default: 3]")] = None,
    epochs: options.Epochs = None,
    batch_size: Annotated[int | None, options.training(help="[default: 16]")] = None,
    learning_rate: options.LearningRate = None,
    tune: Annotated[
        int | None, options.training(help="Search each method's learning rate first: so many trials each; 0 for none.")
    ] = None,
    weight_decay: options.WeightDecay = None,
    max_length: options.MaxLength = None,
    linearised: Annotated[
        bool | None, options.training("--linearised", help="Train the network's linearisation at W0 (the NTK regime).")
    ] = None,
    select: Annotated[
        str | None, options.training(help="The epoch kept: lowest validation loss or best metric.  [default: loss]")
    ] = None,
    metric: Annotated[str | None, options.kept(help="Main metric; the task's own, accuracy say, unless given.")] = None,
    costs: options.Costs = None,
    measures: options.Measures = None,
    trajectory: Annotated[
        int | None, options.kept(help="Snapshots that each run keeps of its way, for measures that follow it.")
    ] = None,
    trajectory_full: Annotated[
        bool | None,
        options.kept("--trajectory-full", help="Of full fine-tuning too: a model's size for each snapshot."),
    ] = None,
    landscape_grid: Annotated[
        int | None, options.kept(help="Points a side of a loss landscape.  [default: 51]")
    ] = None,
    landscape_kind: Annotated[
        str | None, options.kept(help="Its planes: random, pca (of the trajectory), or random,pca.  [default: random]")
    ] = None,
    landscape_batches: Annotated[
        int | None, options.kept(help="Batches of training examples it is evaluated on.  [default: 4]")
    ] = None,
    track: Annotated[
        str | None, options.kept(help="Report to trackers as well: tensorboard, wandb, trackio, with commas.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="A spec that comes with tunewise: quickstart.")] = None,
    spec: Annotated[Path | None, typer.Option(help="YAML file with any of these flags; flags given here win.")] = None,
    out: options.Out = None,
    jobs: options.Jobs = None,
    force: options.Force = False,
    dry_run: options.DryRun = False,
) -> None:
    """Train several methods over seeds, measure them side by side, recommend one, write report.html.

    The same command again does what is missing, and only that.
    """
    given = {
        **options.sections(context.params),
        "methods": methods,
        "rank": rank,
        "alpha": alpha,
        "targets": targets,
        "layers": layers,
        "seeds": options.seeds(seeds),
        "tuning": {"trials": tune},
        "reference": reference,
        "metric": metric,
        "measures": measures,
        "measure_settings": {
            "landscape": {"grid": landscape_grid, "kinds": landscape_kind, "batches": landscape_batches}
        },
        "trajectory": trajectory,
        "trajectory_full": trajectory_full,
        "out": str(out) if out else None,
        "costs": costs,
        "jobs": jobs,
        "track": track,
    }
    manner, checked = _asked(given, preset, spec)

    from tunewise.quiet import quiet_libraries

    quiet_libraries()
    from rich.console import Console

    from tunewise.cli.progress import LiveProgress

    console = Console()
    with console.status("reading data and model ..."):
        from tunewise.comparison import compare as run_compare
        from tunewise.evidence import DEFAULT_TITLE
        from tunewise.jobs.execute import check_options
        from tunewise.planning import make_plan
        from tunewise.store.folders import RunStore
        from tunewise.training.tracking import check_trackers
        from tunewise.tuning.search import settled

        check_trackers(manner.track)
        store = RunStore(manner.out)
        plan = make_plan(checked, store)
        check_options(manner.jobs)
        to_do = settled(plan, store)
    show_plan(to_do, console, manner.out)
    show_besides(to_do, store, console)
    if dry_run:
        show_manner(manner.jobs, console)
        if not force:
            from tunewise.preflight import check_plan

            check_plan(to_do, store, jobs=manner.jobs)
        return
    with LiveProgress(console, plan) as listener:
        found = run_compare(
            checked,
            manner.out,
            title=manner.title or DEFAULT_TITLE,
            costs=manner.costs,
            listener=listener,
            plan=plan,
            track=manner.track,
            force=force,
            jobs=manner.jobs,
        )
    show_result(found, console)


def _asked(given: dict[str, Any], preset: str | None, spec: Path | None) -> tuple[ExecutionOptions, StudySpec]:
    """What preset, file and flags say together; the later stand above the earlier."""
    from tunewise.spec import StudySpec, load_yaml, merge_specs, parse, split_options

    content: dict[str, Any] = load_yaml(_preset(preset)) if preset else {}
    if spec:
        content = merge_specs(content, load_yaml(spec))
    content = merge_specs(content, given)
    content["methods"] = _flags_win(content.get("methods"), given)
    source = str(spec) if spec else ""
    manner, content = split_options(content, source)
    for name, flag in (("model", "--model"), ("data", "--data"), ("methods", "--methods")):
        if not content.get(name):
            raise SpecError(f"{name!r} is missing: give {flag}, a --spec file, or --preset quickstart")
    return manner, parse(StudySpec, content, source)


def _flags_win(methods: Any, given: dict[str, Any]) -> Any:
    """A flag for all methods stands above what a spec file says of one."""
    flags = {key: given[key] for key in ("rank", "alpha", "targets", "layers") if given[key] is not None}
    if given["training"]["learning_rate"] is not None:
        flags["learning_rate"] = None
    if not flags or not isinstance(methods, list):
        return methods
    return [{k: v for k, v in m.items() if k not in flags} if isinstance(m, dict) else m for m in methods]


def _preset(name: str) -> Path:
    folder = Path(__file__).parent.parent / "presets"
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    if name not in known:
        raise SpecError(f"unknown preset {name!r}{suggest_nearest(name, known)}")
    return folder / f"{name}.yaml"
