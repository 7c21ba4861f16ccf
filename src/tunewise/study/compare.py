"""The main job: methods x seeds on one model and data set, their costs, a recommendation, a report.

    plan -> learning rates -> runs, seed by seed -> costs -> measures -> summaries -> recommendation -> report.html

Calling it again with the same spec does what is missing, and only that.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from tunewise.advise.recommend import Recommendation, recommend
from tunewise.advise.summary import MethodSummary
from tunewise.device import use_device
from tunewise.errors import StoreError
from tunewise.measures.collect import collect
from tunewise.measures.cost.probe import probe_costs
from tunewise.report.data import ReportData
from tunewise.report.report_page import write_report
from tunewise.spec import ExecutionOptions, StudySpec, content_hash, parse
from tunewise.store.documents import read_document, write_document
from tunewise.store.environment import environment
from tunewise.store.folders import RunStore
from tunewise.store.records import CostReport, RunRecord
from tunewise.study import evidence
from tunewise.study.executors import make_executor, with_default_jobs
from tunewise.study.loop import run_study
from tunewise.study.monitor import Monitor
from tunewise.study.plan import Plan, make_plan, require_comparison
from tunewise.study.policies.grid import GridPolicy
from tunewise.study.policies.rates import RatePolicy, chosen_rates
from tunewise.study.resources import check_plan
from tunewise.training.events import Listener, Phase
from tunewise.training.journal import read_history
from tunewise.training.tracking import check_trackers


@dataclass(frozen=True, kw_only=True)
class Comparison(evidence.Evidence):
    """What a comparison found, and where it lies."""

    summaries: list[MethodSummary]
    recommendation: Recommendation
    report: Path

    @property
    def failed(self) -> int:
        """Runs that failed or ran out of memory; the same call tries them again."""
        return sum(record.status in ("failed", "oom") for record in self.records)


def compare(
    spec: StudySpec,
    out: str | Path = "runs",
    *,
    listener: Listener | None = None,
    plan: Plan | None = None,
    **options: object,
) -> Comparison:
    """Run a comparison, or what is missing of it, and write its report.

    Learning rates that are not given are searched for first, unless the spec says `tuning=None`.

    Args:
        spec: Methods x seeds on one model, one data set and one training setting.
        out: Folder for the runs and what is written about them.
        listener: Receives the events of all runs; a stop that it requests ends the comparison at checkpoints.
        plan: What `make_plan` returned for this spec, if it was made before.
        **options: Fields of `ExecutionOptions`: `title`, `costs`, `jobs`, `executor`, `device`, `ray`, `track`,
            `force`.

    Returns:
        Records, costs, summaries, the recommendation, and where they are.

    Raises:
        SpecError, DataError, ModelError: The spec can't be used.
        InsufficientResources: Memory or disk look too small, and `force` is not set.
        StoreError: The runs folder can't be written to.
        Interrupted: The listener requested a stop; the same call goes on.
        TunewiseError: No run came to a good end.

    Example:
        >>> import tunewise
        >>> spec = tunewise.StudySpec(model="roberta-base", data="mrpc.csv", methods=["lora", "cla"])
        >>> comparison = tunewise.compare(spec, "runs", jobs=2)  # doctest: +SKIP
        >>> comparison.recommendation.choice  # doctest: +SKIP
        'cla'
    """
    execution = parse(ExecutionOptions, {**options, "out": str(out)})
    with use_device(execution.device):
        return _compare(spec, with_default_jobs(execution), plan, listener or Listener())


def _compare(spec: StudySpec, execution: ExecutionOptions, plan: Plan | None, listener: Listener) -> Comparison:
    require_comparison(spec)
    spec = spec.with_default_search()
    check_trackers(execution.track)
    store = RunStore(execution.out)
    plan = plan or make_plan(spec, store, listener)
    if not execution.force:
        check_plan(plan, store, execution)
    monitor = Monitor.of(plan, store, listener)
    title = execution.title or evidence.DEFAULT_TITLE
    with make_executor(execution, store, monitor) as executor:
        tuning = None
        if plan.spec.tuning is not None:
            rates = RatePolicy(plan, store)
            monitor.expect(rates.upcoming(), later=plan.todo)
            run_study(rates, executor, store, monitor)
            tuning = rates.report()
            plan = plan.with_rates(chosen_rates(tuning), store)
        folder = evidence.begin(plan.spec, store, title, tuning)
        with monitor.log_to(folder, plan, execution):
            run_study(GridPolicy(plan), executor, store, monitor, tuple(execution.track))
    listener.on(Phase("writing the report"))
    study = evidence.Evidence(plan.spec, folder, _records(plan, store), title, tuning=tuning)
    comparison = conclude(study)  # hours of training are not lost to a failing measure
    costs = _costs(plan, store, listener) if execution.costs else None
    if costs is not None:
        evidence.keep_costs(folder, costs)
    measured = collect(plan.spec.measures, study.records, store, plan.task, listener, plan.spec.measure_settings)
    return conclude(replace(study, costs=costs, measured=measured)) if costs or measured else comparison


def _records(plan: Plan, store: RunStore) -> list[RunRecord]:
    """The records of a plan, in its order."""
    records = []
    for run in plan.runs:
        record = store.record(run.id)
        if record is None:
            raise StoreError(f"run {run.id} has no record any more; run the same command again")
        # A run that another comparison made is called there what it is called here.
        records.append(record.model_copy(update={"spec": run.spec}))
    return records


def conclude(study: evidence.Evidence, report: Path | None = None) -> Comparison:
    """Summaries, recommendation and report (beside the specification unless given) of finished runs; nothing is
    trained or measured."""
    summaries = study.summarise()
    recommendation = recommend(summaries, tuning=study.tuning)
    report = report or study.folder / "report.html"
    root, here = study.folder.parent, report.absolute().parent
    data = ReportData(
        comparison=study.spec,
        records=study.records,
        histories={r.id: read_history(root / r.id / "history.jsonl") for r in study.records},
        costs=study.costs,
        summaries=summaries,
        recommendation=recommendation,
        folders={r.id: os.path.relpath(root.absolute() / r.id, here) for r in study.records},
        measured=study.measured,
        tuning=study.tuning,
        answers=study.read_answers(),
    )
    write_report(report, study.title, data)
    return Comparison(**vars(study), summaries=summaries, recommendation=recommendation, report=report)


def _costs(plan: Plan, store: RunStore, listener: Listener) -> CostReport:
    """Costs of the methods, measured once per device, versions and settings that decide them."""
    spec, versions = plan.spec, environment()
    key = content_hash(
        {
            "spec": spec.model_dump(mode="json", include={"task", "model", "data", "training"}),
            "methods": [method.content() for method in spec.methods],
            "where": [versions.device, versions.tunewise, versions.versions],
        }
    )
    file = store.root / "costs" / f"{key}.json"
    if file.exists():
        return read_document(file, CostReport, "remove it to measure again")
    listener.on(Phase("measuring costs"))
    report = probe_costs(spec, plan.task, check=listener.check)
    write_document(file, report)
    return report
