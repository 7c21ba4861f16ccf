"""The search for each method's learning rate: trials at a seed that no run of the study has, judged on validation.

Each trial is an ordinary run with its folder and record, so a search that was stopped goes on and a finished one is not
repeated. Which rate is chosen follows from the records alone; scores on the test split are never looked at. The grid is
ours rather than an Optuna sampler's: `GridSampler` can't extend a grid at the end where its best value lies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from tunewise.errors import SpecError, StoreError
from tunewise.spec import TuningSpec
from tunewise.store.folders import RunStore
from tunewise.store.records import MethodTuning, RunRecord, Trial, TuningReport
from tunewise.study.plan import Plan, PlannedRun
from tunewise.study.policies.base import Policy
from tunewise.study.policies.rate_grid import best_rate, edge, first_rates, next_rate
from tunewise.training.journal import read_history


class RatePolicy(Policy):
    """Asks for the grids of all methods at once, then for the further trials, wave by wave.

    While a best rate lies at the end of its grid, every method gets a further trial, at most `extend` times: outward
    from an end, closer around the best elsewhere. Raises `SpecError` where every method's rate is given.
    """

    asks_for_trials = True

    def __init__(self, plan: Plan, store: RunStore) -> None:
        assert plan.spec.tuning is not None
        self.plan = plan
        self.settings = plan.spec.tuning
        self.searches = [Search(row, self.settings, plan, store) for row in plan.rows if not row.spec.given_rate]
        if not self.searches:
            raise SpecError(
                "there is nothing to tune: every method has a learning rate; leave out learning_rate, or the search"
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

    def tell(self, record: RunRecord) -> None:
        self._open.discard(record.id)

    def upcoming(self) -> list[PlannedRun]:
        return [run for search in self.searches for run in search.upcoming()]

    def report(self) -> TuningReport:
        """The rate of each method, once `ask` has nothing more. Raises `StoreError` where a trial left no record."""
        chosen = {search.method.label: search.outcome() for search in self.searches}
        task, by_loss = self.plan.task, self.plan.spec.training.select == "loss"
        return TuningReport(
            settings=self.settings,
            seed=self.plan.spec.tuning_seed,
            objective="validation loss" if by_loss else f"validation {task.metric.replace('_', ' ')}",
            lower_is_better=by_loss or task.metric in task.lower_is_better,
            methods=[chosen.get(row.spec.method.label) or _given(row) for row in self.plan.rows],
        )

    def _all_waves(self) -> Iterator[list[tuple[Search, float]]]:
        yield [(search, rate) for search in self.searches for rate in search.grid]
        for _ in range(self.settings.extend):
            if not any(edge(search.values) for search in self.searches):
                return
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


def _given(row: PlannedRun) -> MethodTuning:
    rate = row.spec.learning_rate
    return MethodTuning(method=row.spec.method.label, middle=rate, given=True, chosen=rate)


class Search:
    """One method's search: its grid, its trials so far and their values (lower is better, infinite for a failure)."""

    def __init__(self, first: PlannedRun, settings: TuningSpec, plan: Plan, store: RunStore) -> None:
        self.first = first
        self.method = first.spec.method
        self.middle = first.spec.learning_rate
        self.seed = plan.spec.tuning_seed
        self.store = store
        self.grid = first_rates(self.middle, settings.factor, settings.trials)
        self.trials: list[Trial] = []
        self.values: dict[float, float] = {}
        self.by_loss = first.spec.training.select == "loss"
        self.metric = plan.task.metric
        lower = self.by_loss or self.metric in plan.task.lower_is_better
        self.sign = 1.0 if lower else -1.0

    def upcoming(self) -> list[PlannedRun]:
        """Trials of the grid that are not settled and have no record that settles them."""
        runs = [self.trial(rate) for rate in self.grid if rate not in self.values]
        return [run for run in runs if self.store.finished(run.id) is None]

    def missing(self, rate: float) -> PlannedRun | None:
        """The trial at this rate, where it is still to be run."""
        run = self.trial(rate)
        return run if self.store.finished(run.id) is None else None

    def settle(self, rate: float) -> None:
        """Take note of the trial at this rate. Raises `StoreError` where it left no record."""
        run_id = self.trial(rate).id
        record = self.store.finished(run_id) or self.store.record(run_id)
        if record is None:
            raise StoreError(f"trial {run_id} left no record; run the same command again")
        history = read_history(self.store.folder(run_id) / "history.jsonl")
        epochs = sum(entry["kind"] == "epoch" for entry in history)
        value = self._value(record) if record.status == "done" else None
        self.trials.append(Trial(rate=rate, run=run_id, status=record.status, epochs=epochs, value=value))
        self.values[rate] = math.inf if value is None else self.sign * value

    def outcome(self) -> MethodTuning:
        """The rate with the best value among the trials that ran to their end; the middle where none did."""
        best = best_rate(self.values)
        failed = not math.isfinite(self.values[best])
        return MethodTuning(
            method=self.method.label,
            middle=self.middle,
            trials=self.trials,
            chosen=self.middle if failed else best,
            edge=None if failed else edge(self.values),
            note="no trial came to its end; the rate is the default" if failed else None,
        )

    def trial(self, rate: float) -> PlannedRun:
        """The trial at this rate, as a run."""
        method = self.method.model_copy(update={"learning_rate": rate, "title": f"{self.method.label} at {rate:g}"})
        spec = self.first.spec.model_copy(update={"method": method, "seed": self.seed})
        return replace(self.first, spec=spec)

    def _value(self, record: RunRecord) -> float:
        assert record.results is not None
        kept = record.results.validation
        return kept.loss if self.by_loss else kept.metrics[self.metric]
