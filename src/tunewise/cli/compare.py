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
) -> int:
    """Run a comparison."""
    options, study = read_request(given, preset, spec)

    from tunewise.quiet import quiet_libraries

    quiet_libraries()
    from rich.console import Console

    from tunewise.cli.compare_tables import show_plan, show_result

    console = Console(highlight=False)
    with console.status("reading data and model ..."):
        from tunewise.store.folders import RunStore
        from tunewise.study.compare import compare as run_comparison
        from tunewise.study.plan import make_plan, require_comparison
        from tunewise.study.policies.rates import apply_known_rates
        from tunewise.study.resources import check_plan
        from tunewise.training.tracking import check_trackers

        require_comparison(study)
        check_trackers(options.track)
        store = RunStore(options.out)
        plan = make_plan(study, store)
        with_rates = apply_known_rates(plan, store)
    show_plan(with_rates, store, options, console)
    if dry_run:
        if not options.force:
            check_plan(with_rates, store, options)
        return 0

    from tunewise.cli.progress import StudyProgress

    with StudyProgress(console, len(plan.todo), plan.runs[0].steps) as listener:
        result = run_comparison(study, listener=listener, plan=plan, **options.model_dump())
    show_result(result, console)
    return 1 if result.failed else 0
