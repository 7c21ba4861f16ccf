"""`tunewise compare`: methods x seeds on one model and data set, and which to use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tunewise.cli import flags
from tunewise.errors import SpecError, suggest_nearest
from tunewise.spec import ExecutionOptions, StudySpec, load_yaml, merge_specs, parse, split_options

if TYPE_CHECKING:
    from rich.console import Console

    from tunewise.study.compare import Comparison


PRESETS = Path(__file__).parent.parent / "presets"


@flags.spec_flags(StudySpec, ExecutionOptions)
def compare(
    given: flags.Given,
    *,
    preset: Annotated[str | None, Parameter(help="A spec that comes with tunewise: quickstart.")] = None,
    spec: flags.SpecFile = None,
    no_tune: Annotated[
        bool,
        Parameter(
            negative=(),
            show_default=False,
            group=flags.GROUPS["Learning-rate search"],
            help="Use the default rates without a search.",
        ),
    ] = False,
    dry_run: flags.DryRun = False,
) -> int:
    """Run a comparison. Learning rates that are not given are searched for first."""
    if no_tune:
        given = merge_specs(given, {"tuning": {"trials": 0}})
    result = run_comparison(*read_request(given, preset, spec), dry_run=dry_run)
    return 1 if result is not None and result.failed else 0


def read_request(given: flags.Given, preset: str | None, spec: Path | None) -> tuple[ExecutionOptions, StudySpec]:
    """Merge preset, spec file and flags; the later win over the earlier. Learning rates are searched by default where a
    method has none."""
    content = load_yaml(_preset(preset)) if preset else {}
    content = merge_specs(merge_specs(content, load_yaml(spec) if spec else {}), given)
    content["methods"] = _without_overridden(content.get("methods"), given)
    for name in ("model", "data", "methods"):
        if not content.get(name):
            raise SpecError(f"{name!r} is missing: give --{name}, a --spec file, or --preset quickstart")
    source = str(spec) if spec else ""
    options, content = split_options(content, source)
    return options, parse(StudySpec, content, source).with_default_search()


def _without_overridden(methods: object, given: flags.Given) -> object:
    """A flag for all methods wins over the setting of one method in a file."""
    flags = {*given, "learning_rate"} if given.get("training", {}).get("learning_rate") else {*given}
    if not isinstance(methods, list):
        return methods
    return [{k: v for k, v in m.items() if k not in flags} if isinstance(m, dict) else m for m in methods]


def _preset(name: str) -> Path:
    names = sorted(file.stem for file in PRESETS.glob("*.yaml"))
    if name not in names:
        raise SpecError(f"unknown preset {name!r}{suggest_nearest(name, names)}")
    return PRESETS / f"{name}.yaml"


def run_comparison(options: ExecutionOptions, study: StudySpec, *, dry_run: bool) -> Comparison | None:
    """Print the plan, run it, print the result; None for a dry run."""
    from rich.console import Console

    from tunewise.cli.studies import run_and_show
    from tunewise.study.compare import compare
    from tunewise.study.plan import require_comparison

    require_comparison(study)
    console = Console(highlight=False)
    result = run_and_show(compare, options, study, console, dry_run=dry_run)
    if result is not None:
        _show_result(result, console)
    return result


def _show_result(result: Comparison, console: Console) -> None:
    from tunewise.predicting import plain_lines
    from tunewise.report.table import console_table

    console.print("", console_table(result.summaries, result.recommendation), "", sep="\n")
    if result.tuning is not None:
        rates = [
            f"{row.method} {row.chosen:g}"
            + (" (given)" if row.given else f" (the {row.edge} tried)" if row.edge else "")
            for row in result.tuning.methods
        ]
        console.print(f"Learning rates: {', '.join(rates)}\n", markup=False)
    console.print(*result.recommendation.sentences, "", sep="\n", markup=False)
    console.print(f"report   {result.report}", soft_wrap=True)
    choice = result.recommendation.choice
    if chosen := result.adapter_of(choice):
        adapter, seed = chosen
        console.print(f"adapter  {adapter}  ({choice}, seed {seed})", soft_wrap=True)
        console.print(f"predict  tunewise predict {adapter.parent} --data FILE --out FILE.csv", soft_wrap=True)
        if lines := plain_lines(adapter.parent):
            console.print("\nWithout tunewise, for one input:", *lines, sep="\n", markup=False, soft_wrap=True)
