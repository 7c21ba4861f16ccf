"""`tunewise compare`: methods x seeds on one model and data set, and which to use."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from tunewise.cli import flags
from tunewise.cli.requests import read_request
from tunewise.spec import ExecutionOptions, StudySpec


@flags.spec_flags(StudySpec, ExecutionOptions)
def compare(
    given: dict[str, Any],
    *,
    preset: Annotated[str | None, Parameter(help="A spec that comes with tunewise: quickstart.")] = None,
    spec: flags.SpecFile = None,
    dry_run: flags.DryRun = False,
) -> None:
    """Run a comparison."""
    options, study = read_request(given, preset, spec)

    from tunewise.quiet import quiet_libraries

    quiet_libraries()
    from rich.console import Console

    from tunewise.cli.compare_tables import show_plan, show_result

    console = Console(highlight=False)
    with console.status("reading data and model ..."):
        from tunewise.comparison import compare as run_comparison
        from tunewise.evidence import DEFAULT_TITLE
        from tunewise.jobs.execute import check_options
        from tunewise.planning import make_plan
        from tunewise.preflight import check_plan
        from tunewise.store.folders import RunStore
        from tunewise.training.tracking import check_trackers
        from tunewise.tuning.search import settled

        check_trackers(options.track)
        store = RunStore(options.out)
        plan = make_plan(study, store)
        check_options(options.jobs)
        with_rates = settled(plan, store)
    show_plan(with_rates, store, options, console)
    if dry_run:
        if not options.force:
            check_plan(with_rates, store, jobs=options.jobs)
        return

    from tunewise.cli.progress import StudyProgress

    settings = options.model_dump(include={"costs", "track", "jobs", "force"})
    settings["title"] = options.title or DEFAULT_TITLE
    with StudyProgress(console, len(plan.runs) - len(plan.done), plan.steps) as listener:
        result = run_comparison(study, options.out, listener=listener, plan=plan, **settings)
    show_result(result, console)
