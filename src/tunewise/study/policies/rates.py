"""The search for each method's learning rate: trials at a seed that no run of the study has, judged on validation.

Each trial is an ordinary run with its folder and record, so a search that was stopped goes on and a finished one is not
repeated. Which trials are stopped early, and which rate is chosen, follows from their histories alone: the same records
give the same answer. Their scores on the test split are never looked at. The grid is ours rather than an Optuna
sampler's: `GridSampler` can't extend a grid at the end where its best value lies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from tunewise.errors import SpecError, StoreError
from tunewise.spec import TuningSpec
from tunewise.store.folders import RunStore
from tunewise.store.records import MethodTuning, RunRecord, Trial, TuningReport
from tunewise.study.early_stop import LEAST_TRIALS, MedianStop, Objective, require_optuna, stopped_at
from tunewise.study.outcome import Outcome
from tunewise.study.plan import Plan, PlannedRun
from tunewise.study.policies.base import Policy
from tunewise.study.policies.rate_grid import best_rate, edge, first_rates, next_rate


class RatePolicy(Policy):
    """Asks for the trials of all methods in waves: no trial's end depends on another of the same wave.

    Where a best rate lies at the end of its grid and `extend` is set, every method gets that many further trials:
    outward from an end, closer around the best elsewhere. Raises `SpecError` where every method's rate is given.
    """

    def __init__(self, plan: Plan, store: RunStore) -> None:
        assert plan.spec.tuning is not None
        self.plan = plan
        self.settings = plan.spec.tuning
        if self.settings.stop == "median":
            require_optuna()
        self.searches = [
            Search(row, self.settings, plan, store) for row in plan.rows if self.settings.given or not _is_given(row)
        ]
        if not self.searches:
            raise SpecError(
                "there is nothing to tune: every method has a learning rate; leave out learning_rate, or set "
                "'given: true' under tuning to search around it"
            )
        self._waves = self._all_waves()
        self._wave: list[tuple[Search, float]] = []
        self._open: set[str] = set()

    def ask(self) -> list[PlannedRun]:
        while not self._open:
            for search, rate in self._wave:
                search.settle(rate)
            wave = next(self._waves, None)
            self._wave = wave or []
            if wave is None:
                return []
            runs = list({run.id: run for search, rate in wave if (run := search.missing(rate)) is not None}.values())
            self._open = {run.id for run in runs}
            if runs:
                return runs
        return []

    def tell(self, outcome: Outcome) -> None:
        self._open.discard(outcome.run_id)

    def upcoming(self) -> list[PlannedRun]:
        return [run for search in self.searches for run in search.upcoming()]

    def report(self) -> TuningReport:
        """The rate of each method, once `ask` has nothing more. Raises `StoreError` where a trial left no record."""
        chosen = {search.method.label: search.outcome() for search in self.searches}
        task, by_loss = self.plan.task, self.plan.spec.training.select == "loss"
        return TuningReport(
            settings=self.settings,
            objective="validation loss" if by_loss else f"validation {task.metric.replace('_', ' ')}",
            lower_is_better=by_loss or task.metric in task.lower_is_better,
            methods=[chosen.get(row.spec.method.label) or _given(row) for row in self.plan.rows],
        )

    def _all_waves(self) -> Iterator[list[tuple[Search, float]]]:
        for part in self.searches[0].waves():
            yield [(search, rate) for search in self.searches for rate in search.grid[part]]
        if self.settings.extend and any(edge(search.values) for search in self.searches):
            for _ in range(self.settings.extend):
                yield [(search, next_rate(search.values, self.settings.factor)) for search in self.searches]


def chosen_rates(report: TuningReport) -> dict[str, float]:
    """What the search chose, by the methods' labels; methods whose rate was given are not among them."""
    return {row.method: row.chosen for row in report.methods if not row.given}


def apply_known_rates(plan: Plan, store: RunStore) -> Plan:
    """The plan with the rates of its search where all of its trials are done; else the plan itself. Nothing is run."""
    if plan.spec.tuning is None:
        return plan
    policy = RatePolicy(plan, store)
    return plan if policy.ask() else plan.with_rates(chosen_rates(policy.report()), store)


def _is_given(row: PlannedRun) -> bool:
    return row.spec.method.learning_rate is not None or row.spec.training.learning_rate is not None


def _given(row: PlannedRun) -> MethodTuning:
    rate = row.spec.learning_rate
    return MethodTuning(method=row.spec.method.label, middle=rate, given=True, chosen=rate)


class Search:
    """One method's search: its grid, its trials so far and their values (lower is better, infinite for a failure)."""

    def __init__(self, first: PlannedRun, settings: TuningSpec, plan: Plan, store: RunStore) -> None:
        self.first = first
        self.method = first.spec.method
        self.middle = first.spec.learning_rate
        self.settings = settings
        self.store = store
        self.epochs = first.spec.training.epochs
        self.grid = first_rates(self.middle, settings.factor, settings.trials)
        self.trials: list[Trial] = []
        self.values: dict[float, float] = {}
        self._finished: list[list[float]] = []
        by_loss = first.spec.training.select == "loss"
        lower = by_loss or plan.task.metric in plan.task.lower_is_better
        self.objective = Objective(None if by_loss else plan.task.metric, 1.0 if lower else -1.0)

    def upcoming(self) -> list[PlannedRun]:
        """Trials of the grid that are not settled and have no record that settles them."""
        runs = [self.trial(rate) for rate in self.grid if rate not in self.values]
        return [run for run in runs if self._record(run.id) is None]

    def waves(self) -> list[slice]:
        """Parts of the grid: no trial's fate hangs on another's of the same part."""
        count = len(self.grid)
        if self.settings.stop == "never":
            return [slice(0, count)]
        return [slice(0, LEAST_TRIALS), *(slice(i, i + 1) for i in range(LEAST_TRIALS, count))]

    def missing(self, rate: float) -> PlannedRun | None:
        """The trial at this rate, where it is still to be run."""
        run = self.trial(rate)
        record = self._record(run.id)
        if record is not None and record.status == "pruned" and self._stop(self._history(run.id)) is None:
            record = None  # it was stopped beside other trials than these, and would not be now
        return run if record is None else None

    def settle(self, rate: float) -> None:
        """Take note of the trial at this rate. Raises `StoreError` where it left no record."""
        run_id = self.trial(rate).id
        record = self._record(run_id) or self.store.record(run_id)
        if record is None:
            raise StoreError(f"trial {run_id} left no record; run the same command again")
        history = self._history(run_id)
        stop = self._stop(history)
        if stop is not None:  # also where the run is there in full, from elsewhere: the budget is the same for all
            history = history[:stop]
            trial = Trial(rate=rate, run=run_id, status="pruned", epochs=stop, value=min(history))
        elif record.status == "done":
            trial = Trial(rate=rate, run=run_id, status="done", epochs=len(history), value=self._value(record))
            self._finished.append(history)
        else:
            trial = Trial(rate=rate, run=run_id, status=record.status, epochs=len(history), value=None)
        self.trials.append(trial)
        is_done = trial.status == "done" and trial.value is not None
        self.values[rate] = trial.value if is_done and trial.value is not None else math.inf

    def outcome(self) -> MethodTuning:
        """The rate with the best value among the trials that ran to their end; the middle where none did."""
        best = best_rate(self.values)
        failed = not math.isfinite(self.values[best])
        sign = self.objective.sign  # as it is shown: not turned round
        return MethodTuning(
            method=self.method.label,
            middle=self.middle,
            trials=[t.model_copy(update={"value": None if t.value is None else sign * t.value}) for t in self.trials],
            chosen=self.middle if failed else best,
            edge=None if failed else edge(self.values),
            note="no trial came to its end; the rate is the default" if failed else None,
        )

    def trial(self, rate: float) -> PlannedRun:
        """The trial at this rate, as a run, with the rule that stops it."""
        method = self.method.model_copy(update={"learning_rate": rate, "title": f"{self.method.label} at {rate:g}"})
        spec = self.first.spec.model_copy(update={"method": method, "seed": self.settings.seed})
        stop = None
        if self.settings.stop != "never" and len(self._finished) >= LEAST_TRIALS:
            stop = MedianStop(self.objective, tuple(map(tuple, self._finished)), self.epochs)
        return replace(self.first, spec=spec, snapshots=None, stop=stop)

    def _record(self, run_id: str) -> RunRecord | None:
        """The record that settles a trial: of a run that is done, diverged, or was stopped early."""
        record = self.store.finished(run_id)
        if record is None and (kept := self.store.record(run_id)) and kept.status == "pruned":
            record = kept if self.store.intact(kept) else None
        return record

    def _history(self, run_id: str) -> list[float]:
        return self.objective.history(self.store.folder(run_id))

    def _value(self, record: RunRecord) -> float:
        assert record.results is not None
        kept = record.results.validation
        return self.objective.of(kept.loss, kept.metrics)

    def _stop(self, history: list[float]) -> int | None:
        if self.settings.stop == "never":
            return None
        return stopped_at(history, self._finished, self.epochs)
