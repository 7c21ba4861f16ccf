"""The main job: methods x seeds on one model and data set, their costs, a recommendation, a report.

    plan -> learning rates -> runs, seed by seed -> costs -> measures -> summaries -> recommendation -> report.html

Calling it again with the same spec does what is missing, and only that.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunewise import evidence
from tunewise.advise.recommend import Recommendation, recommend
from tunewise.advise.summary import MethodSummary, add_item_comparisons, summarise
from tunewise.jobs.execute import doing, execute
from tunewise.measures.collect import Collected, collect
from tunewise.measures.cost.probe import probe_costs
from tunewise.planning import Plan, make_plan, with_rates
from tunewise.preflight import check_plan
from tunewise.report.data import ReportData
from tunewise.report.report_page import write_report
from tunewise.spec import StudySpec, content_hash
from tunewise.store.documents import read_document, write_document
from tunewise.store.environment import environment
from tunewise.store.folders import RunStore
from tunewise.store.records import CostReport, RunRecord, TuningReport
from tunewise.training.events import Listener, Phase, RunsToDo
from tunewise.training.journal import read_history
from tunewise.training.tracking import check_trackers
from tunewise.tuning import chosen_rates, tune


@dataclass(frozen=True)
class Comparison:
    """What a comparison found, and where it lies."""

    spec: StudySpec
    records: list[RunRecord]
    costs: CostReport | None
    tuning: TuningReport | None
    summaries: list[MethodSummary]
    recommendation: Recommendation
    measured: Collected
    folder: Path
    report: Path


def compare(
    spec: StudySpec,
    out: str | Path = "runs",
    *,
    title: str = evidence.DEFAULT_TITLE,
    costs: bool = True,
    listener: Listener | None = None,
    plan: Plan | None = None,
    track: Sequence[str] = (),
    force: bool = False,
    jobs: int | None = None,
) -> Comparison:
    """Run a comparison, or what is missing of it, and write its report under `out`. `track` names trackers to
    report to: tensorboard, wandb, trackio. `force` starts it where memory or disk look too small. `jobs` does the runs
    in so many processes of one thread each, trials of a search included.

    Raises what `run` and `make_plan` raise, `NoRoom`, and `TunewiseError` where no run came to a good end.
    """
    listener = listener or Listener()
    check_trackers(track)
    store = RunStore(out)
    plan = plan or make_plan(spec, store)
    if not force:
        check_plan(plan, store, jobs=jobs)
    tuning = None
    if plan.spec.tuning is not None:
        tuning = tune(plan, store, listener, do=doing(plan, store, listener, jobs=jobs))
        plan = with_rates(plan, chosen_rates(tuning), store)
        listener.on(RunsToDo(len(plan.runs) - len(plan.done)))
    folder = evidence.begin(plan.spec, store, title, tuning)
    records = execute(plan, store, listener, track=track, jobs=jobs)
    listener.on(Phase("writing the report"))
    known = evidence.Evidence(plan.spec, folder, records, title, tuning=tuning)
    found = conclude(known)  # hours of training are not lost to a failing measure
    probed = _costs(plan, store, listener) if costs else None
    if probed is not None:
        evidence.keep_costs(folder, probed)
    measured = collect(plan.spec.measures, records, store, plan.task, listener, plan.spec.measure_settings)
    if probed or measured:
        found = conclude(replace(known, costs=probed, measured=measured))
    return found


def conclude(known: evidence.Evidence, report: Path | None = None) -> Comparison:
    """Summaries, recommendation and report (beside the specification unless given) of finished runs; nothing is
    trained or measured."""
    summaries = summarise(known.records, known.costs, known.spec.reference)
    summaries = add_item_comparisons(summaries, evidence.answers(known))
    recommendation = recommend(summaries, tuning=known.tuning)
    report = report or known.folder / "report.html"
    root, here = known.folder.parent, report.absolute().parent
    data = ReportData(
        comparison=known.spec,
        records=known.records,
        histories={r.id: read_history(root / r.id / "history.jsonl") for r in known.records},
        costs=known.costs,
        summaries=summaries,
        recommendation=recommendation,
        folders={r.id: os.path.relpath(root.absolute() / r.id, here) for r in known.records},
        measured=known.measured,
        tuning=known.tuning,
    )
    write_report(report, known.title, data)
    return Comparison(
        spec=known.spec,
        records=known.records,
        costs=known.costs,
        tuning=known.tuning,
        summaries=summaries,
        recommendation=recommendation,
        measured=known.measured,
        folder=known.folder,
        report=report,
    )


def _costs(plan: Plan, store: RunStore, listener: Listener) -> CostReport:
    """The cost probe's result, measured once per device and set of methods."""
    spec = plan.spec
    versions = environment()
    what = {
        "model": spec.model.digest,
        "data": spec.data.digest,
        "task": spec.task,
        "shown": [spec.data.text, spec.data.text_pair, spec.data.image, spec.data.image_size, spec.training.max_length],
        "train_size": spec.data.train_size,
        "batch_size": spec.training.batch_size,
        "methods": [m.model_dump(mode="json", exclude={"learning_rate"}) for m in spec.methods],
        "where": [versions.device, versions.tunewise, versions.versions],
        **({"linearised": True} if spec.training.linearised else {}),
    }
    key = content_hash(what)
    file = store.root / "costs" / f"{key}.json"
    if file.exists():
        return read_document(file, CostReport, "remove it to measure again")
    listener.on(Phase("measuring costs"))
    report = probe_costs(spec, plan.task, check=listener.check)
    write_document(file, report)
    return report
