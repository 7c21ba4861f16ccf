"""The main job: methods x seeds on one model and data set, their costs, a recommendation, a report.

    plan -> runs, seed by seed -> costs -> measures -> summaries -> recommendation -> report.html

Calling it again with the same spec does what is missing, and only that.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tunewise.advise.recommend import Recommendation, recommend
from tunewise.advise.summary import MethodSummary, summarise
from tunewise.errors import StoreError
from tunewise.measures.collect import Collected, collect
from tunewise.measures.cost import probe_costs
from tunewise.planning import Plan, make_plan
from tunewise.report.html import write_report
from tunewise.run import run
from tunewise.spec import CompareSpec, content_hash
from tunewise.store.environment import environment
from tunewise.store.files import write_atomically
from tunewise.store.folders import RunStore
from tunewise.store.records import CostReport, RunRecord
from tunewise.training.events import Listener, Phase
from tunewise.training.journal import read_history


@dataclass(frozen=True)
class Comparison:
    """What a comparison found, and where it lies."""

    plan: Plan
    records: list[RunRecord]
    costs: CostReport | None
    summaries: list[MethodSummary]
    recommendation: Recommendation
    measured: Collected
    folder: Path
    report: Path


def compare(
    spec: CompareSpec,
    out: str | Path = "runs",
    *,
    title: str = "Which fine-tuning method?",
    costs: bool = True,
    listener: Listener | None = None,
    plan: Plan | None = None,
    again: bool = False,
) -> Comparison:
    """Run a comparison, or what is missing of it, and write its report under `out`. With `again`, finished runs that
    kept no trajectory where the spec asks for one are trained anew.

    Raises what `run` and `make_plan` raise, and `TunewiseError` where no run came to a good end.
    """
    listener = listener or Listener()
    store = RunStore(out)
    plan = plan or make_plan(spec, store, again=again)
    records = []
    for one in plan.runs:
        listener.check()
        record = run(one, store, task=plan.task, listener=listener, trajectory=plan.trajectory, again=again)
        # A run that another comparison made is called there what it is called here.
        records.append(record.model_copy(update={"spec": one}))
    folder = store.root / f"compare-{plan.spec.id}"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "compare.json", plan.spec.model_dump_json(indent=1) + "\n")
    listener.on(Phase("writing the report"))
    found = conclude(plan, records, None, {}, folder, title)  # hours of training are not lost to a failing measure
    probed = _costs(plan, store, folder, listener) if costs else None
    measured = collect(plan.spec.measures, records, store, plan.task, listener)
    if probed or measured:
        found = conclude(plan, records, probed, measured, folder, title)
    return found


def conclude(
    plan: Plan, records: list[RunRecord], costs: CostReport | None, measured: Collected, folder: Path, title: str
) -> Comparison:
    """Summaries, recommendation and report of finished runs."""
    summaries = summarise(records, costs, plan.spec.reference)
    recommendation = recommend(summaries)
    report = folder / "report.html"
    root = folder.parent
    write_report(
        report,
        title=title,
        comparison=plan.spec,
        records=records,
        histories={r.id: read_history(root / r.id / "history.jsonl") for r in records},
        costs=costs,
        summaries=summaries,
        recommendation=recommendation,
        measured=measured,
        folders={r.id: os.path.relpath(root / r.id, folder) for r in records},
    )
    return Comparison(plan, records, costs, summaries, recommendation, measured, folder, report)


def _costs(plan: Plan, store: RunStore, folder: Path, listener: Listener) -> CostReport:
    """The cost probe's result, measured once per device and set of methods."""
    spec = plan.spec
    versions = environment()
    what = {
        "model": spec.model.digest,
        "data": spec.data.digest,
        "text": [spec.data.text, spec.data.text_pair, spec.data.train_size, spec.training.max_length],
        "batch_size": spec.training.batch_size,
        "methods": [m.model_dump(mode="json", exclude={"learning_rate"}) for m in spec.methods],
        "where": [versions.device, versions.tunewise, versions.versions],
    }
    key = content_hash(what)
    file = store.root / "costs" / f"{key}.json"
    if file.exists():
        try:
            return CostReport.model_validate_json(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StoreError(
                f"{file} can't be read ({str(error).splitlines()[0]}); remove it to measure again"
            ) from None
    listener.on(Phase("measuring costs"))
    report = probe_costs(spec, plan.task, check=listener.check)
    write_atomically(file, report.model_dump_json(indent=1) + "\n")
    return report
