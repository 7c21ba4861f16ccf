"""The search: trials are runs of their own at a seed that no run of the comparison has, judged on validation alone.

Each trial is an ordinary run with its folder and record, so a search that was stopped goes on, and a finished one is
not repeated. Which trials are stopped early, and which rate is chosen, follows from their histories and nothing else:
asked again, the same records give the same answer. Their scores on the test split, which an ordinary run has, are never
looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tunewise.errors import SpecError
from tunewise.planning import Plan
from tunewise.run import run
from tunewise.spec import MethodSpec, RunSpec, TuningSpec
from tunewise.store.folders import RunStore
from tunewise.store.records import MethodTuning, RunRecord, Trial, TuningReport
from tunewise.training.events import EpochDone, Event, Listener, Pruned, RunsToDo
from tunewise.training.journal import read_history
from tunewise.tuning.grid import best_rate, edge, first_rates, next_rate
from tunewise.tuning.stopping import require_optuna, stopped_at


def tune(plan: Plan, store: RunStore, listener: Listener) -> TuningReport:
    """Do the trials of a plan whose spec has `tuning`, or what is missing of them, and choose a rate for each method.

    Where a best rate lies on the edge of its grid and `extend` is set, every method gets that many further trials:
    outward from an edge, closer around the best elsewhere. Raises what `run` raises, and `SpecError` where every
    method's rate is given.
    """
    settings = plan.spec.tuning
    assert settings is not None
    if settings.stop == "median":
        require_optuna()
    searches = _searches(plan, store, settings)
    if not searches:
        raise SpecError(
            "there is nothing to tune: every method has a learning rate; leave out learning_rate, or set "
            "'given: true' under tuning to search around it"
        )
    runs = len(plan.runs)
    listener.on(RunsToDo(runs + sum(search.waiting() for search in searches)))
    for search in searches:
        for rate in search.grid:
            search.attempt(rate, listener)
    if settings.extend and any(edge(search.values) for search in searches):
        listener.on(RunsToDo(runs + settings.extend * len(searches)))
        for search in searches:
            for _ in range(settings.extend):
                search.attempt(next_rate(search.values, settings.factor), listener)
    found = {search.method.label: search.outcome() for search in searches}
    rows = [found.get(known.method.label) or _given(known.method, known.learning_rate) for known in plan.methods]
    by_loss = plan.spec.training.select == "loss"
    return TuningReport(
        settings=settings,
        objective="validation loss" if by_loss else f"validation {plan.task.metric.replace('_', ' ')}",
        lower_is_better=by_loss or plan.task.metric in plan.task.lower_is_better,
        methods=rows,
    )


def chosen_rates(report: TuningReport) -> dict[str, float]:
    """What the search chose, by the methods' labels; methods whose rate was given are not among them."""
    return {row.method: row.chosen for row in report.methods if not row.given}


def waiting_trials(plan: Plan, store: RunStore) -> int:
    """How many trials of the grids have not been run yet, as far as their records say."""
    assert plan.spec.tuning is not None
    return sum(search.waiting() for search in _searches(plan, store, plan.spec.tuning))


def _searches(plan: Plan, store: RunStore, settings: TuningSpec) -> list[Search]:
    first = plan.spec.runs()[: len(plan.spec.methods)]
    return [
        Search(one, planned.learning_rate, settings, plan, store)
        for one, planned in zip(first, plan.methods, strict=True)
        if settings.given or not _is_given(one)
    ]


def _is_given(one: RunSpec) -> bool:
    return one.method.learning_rate is not None or one.training.learning_rate is not None


def _given(method: MethodSpec, rate: float) -> MethodTuning:
    return MethodTuning(method=method.label, middle=rate, given=True, chosen=rate)


class Search:
    """One method's search: its grid, its trials so far and their values (lower is better, infinite for a failure)."""

    def __init__(self, first: RunSpec, middle: float, settings: TuningSpec, plan: Plan, store: RunStore) -> None:
        self.first = first
        self.method = first.method
        self.middle = middle
        self.settings = settings
        self.plan = plan
        self.store = store
        self.grid = first_rates(middle, settings.factor, settings.trials)
        self.trials: list[Trial] = []
        self.values: dict[float, float] = {}
        self._finished: list[list[float]] = []

    def waiting(self) -> int:
        """Trials of the grid without a record that settles them."""
        records = [self._known(self._spec(rate)) for rate in self.grid]
        return sum(record is None for record in records)

    def attempt(self, rate: float, listener: Listener) -> None:
        """Run the trial at this rate, or read it where it was run before."""
        listener.check()
        spec = self._spec(rate)
        record = self._known(spec)
        if record is not None and record.status == "pruned" and self._stop(self._history(spec)) is None:
            record = None  # it was stopped beside other trials than these, and would not be now
        if record is None:
            watch = _Watch(listener, lambda: self._reason_to_stop(spec))
            record = run(spec, self.store, task=self.plan.task, listener=watch)
        history = self._history(spec)
        stop = self._stop(history)
        if stop is not None:  # also where the run is there in full, from elsewhere: the budget is the same for all
            history = history[:stop]
            trial = Trial(rate=rate, run=spec.id, status="pruned", epochs=stop, value=min(history))
        elif record.status == "done":
            trial = Trial(rate=rate, run=spec.id, status="done", epochs=len(history), value=self._value(record))
            self._finished.append(history)
        else:
            trial = Trial(rate=rate, run=spec.id, status=record.status, epochs=len(history), value=None)
        self.trials.append(trial)
        is_done = trial.status == "done" and trial.value is not None
        self.values[rate] = trial.value if is_done and trial.value is not None else math.inf

    def outcome(self) -> MethodTuning:
        """The rate with the best value among the trials that ran to their end; the middle where none did."""
        best = best_rate(self.values)
        failed = not math.isfinite(self.values[best])
        sign = self._objective(1.0, dict.fromkeys(self.plan.task.metrics, 1.0))  # as it is shown: not turned round
        return MethodTuning(
            method=self.method.label,
            middle=self.middle,
            trials=[t.model_copy(update={"value": None if t.value is None else sign * t.value}) for t in self.trials],
            chosen=self.middle if failed else best,
            edge=None if failed else edge(self.values),
            note="no trial came to its end; the rate is the default" if failed else None,
        )

    def _spec(self, rate: float) -> RunSpec:
        method = self.method.model_copy(update={"learning_rate": rate, "title": f"{self.method.label} at {rate:g}"})
        return self.first.model_copy(update={"method": method, "seed": self.settings.seed})

    def _known(self, spec: RunSpec) -> RunRecord | None:
        record = self.store.finished(spec.id)
        if record is None and (kept := self.store.record(spec.id)) and kept.status == "pruned":
            record = kept if self.store.intact(kept) else None
        return record

    def _history(self, spec: RunSpec) -> list[float]:
        """The objective after each epoch, lower is better."""
        entries = read_history(self.store.folder(spec.id) / "history.jsonl")
        return [self._objective(e["validation"]["loss"], e["validation"]["metrics"]) for e in _epochs(entries)]

    def _value(self, record: RunRecord) -> float:
        assert record.results is not None
        kept = record.results.validation
        return self._objective(kept.loss, kept.metrics)

    def _objective(self, loss: float, metrics: dict[str, float]) -> float:
        task = self.plan.task
        if self.first.training.select == "loss":
            return loss
        return metrics[task.metric] if task.metric in task.lower_is_better else -metrics[task.metric]

    def _stop(self, history: list[float]) -> int | None:
        if self.settings.stop == "never":
            return None
        return stopped_at(history, self._finished, self.first.training.epochs)

    def _reason_to_stop(self, spec: RunSpec) -> str | None:
        history = self._history(spec)
        epoch = self._stop(history)
        if epoch is None:
            return None
        return (
            f"stopped after epoch {epoch} of {self.first.training.epochs}: worse than the median of the trials before "
            f"it, and no longer getting better"
        )


def _epochs(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in entries if entry["kind"] == "epoch"]


class _Watch(Listener):
    """Passes everything on, and ends a trial that has fallen behind."""

    def __init__(self, inner: Listener, reason_to_stop: Callable[[], str | None]) -> None:
        self.inner = inner
        self.reason_to_stop = reason_to_stop

    def on(self, event: Event) -> None:
        self.inner.on(event)
        self.stop_requested = self.inner.stop_requested
        if isinstance(event, EpochDone) and (reason := self.reason_to_stop()):
            raise Pruned(reason)

    def check(self) -> None:
        self.inner.check()
