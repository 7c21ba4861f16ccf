"""The search: trials are runs of their own at a seed that no run of the comparison has, judged on validation alone.

Each trial is an ordinary run with its folder and record, so a search that was stopped goes on, and a finished one is
not repeated. Which trials are stopped early, and which rate is chosen, follows from their histories and nothing else:
asked again, the same records give the same answer. Their scores on the test split, which an ordinary run has, are never
looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from tunewise.errors import SpecError, StoreError
from tunewise.planning import Plan, with_rates
from tunewise.run import run
from tunewise.spec import MethodSpec, RunSpec, TuningSpec
from tunewise.store.folders import RunStore
from tunewise.store.records import MethodTuning, RunRecord, Trial, TuningReport
from tunewise.training.events import Listener, RunsToDo
from tunewise.tuning.grid import best_rate, edge, first_rates, next_rate
from tunewise.tuning.stopping import LEAST_TRIALS, Objective, StopRule, Watch, require_optuna, stopped_at

Doing = Callable[[Sequence[RunSpec], Mapping[str, StopRule]], object]
"""Does trials, in any manner, and stops those that fall behind by the rules, which are under their runs' ids."""


def tune(plan: Plan, store: RunStore, listener: Listener, do: Doing | None = None) -> TuningReport:
    """Do the trials of a plan whose spec has `tuning`, or what is missing of them, and choose a rate for each method.
    `do` does them in another manner than one after another.

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

    def one_after_another(specs: Sequence[RunSpec], rules: Mapping[str, StopRule]) -> None:
        for spec in specs:
            listener.check()
            run(spec, store, task=plan.task, listener=Watch(listener, rules, store))

    do = do or one_after_another
    for wave in searches[0].waves():
        _attempt([(search, rate) for search in searches for rate in search.grid[wave]], do)
    if settings.extend and any(edge(search.values) for search in searches):
        listener.on(RunsToDo(runs + settings.extend * len(searches)))
        for _ in range(settings.extend):
            _attempt([(search, next_rate(search.values, settings.factor)) for search in searches], do)
    found = {search.method.label: search.outcome() for search in searches}
    rows = [found.get(known.method.label) or _given(known.method, known.learning_rate) for known in plan.methods]
    by_loss = plan.spec.training.select == "loss"
    return TuningReport(
        settings=settings,
        objective="validation loss" if by_loss else f"validation {plan.task.metric.replace('_', ' ')}",
        lower_is_better=by_loss or plan.task.metric in plan.task.lower_is_better,
        methods=rows,
    )


def _attempt(trials: Sequence[tuple[Search, float]], do: Doing) -> None:
    """Do what is missing of a wave, and settle all of it."""
    missing = [spec for search, rate in trials if (spec := search.missing(rate)) is not None]
    rules = {search.spec(rate).id: rule for search, rate in trials if (rule := search.rule()) is not None}
    if missing:
        do(missing, {spec.id: rules[spec.id] for spec in missing if spec.id in rules})
    for search, rate in trials:
        search.settle(rate)


def chosen_rates(report: TuningReport) -> dict[str, float]:
    """What the search chose, by the methods' labels; methods whose rate was given are not among them."""
    return {row.method: row.chosen for row in report.methods if not row.given}


class _Waiting(Exception):
    """A trial is still to be done."""


def settled(plan: Plan, store: RunStore) -> Plan:
    """The plan with the rates that its search has chosen, where all of its trials are there; else the plan itself.
    Nothing is run. Raises `SpecError` as `tune` does."""
    if plan.spec.tuning is None:
        return plan

    def wait(trials: Sequence[RunSpec], rules: Mapping[str, StopRule]) -> None:
        raise _Waiting

    try:
        found = tune(plan, store, Listener(), do=wait)
    except _Waiting:
        return plan
    return with_rates(plan, chosen_rates(found), store)


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
        task = plan.task
        by_loss = first.training.select == "loss"
        lower = by_loss or task.metric in task.lower_is_better
        self.objective = Objective(None if by_loss else task.metric, 1.0 if lower else -1.0)

    def waiting(self) -> int:
        """Trials of the grid without a record that settles them."""
        records = [self._known(self.spec(rate)) for rate in self.grid]
        return sum(record is None for record in records)

    def waves(self) -> list[slice]:
        """Parts of the grid: no trial's fate hangs on another's of the same part."""
        count = len(self.grid)
        if self.settings.stop == "never":
            return [slice(0, count)]
        return [slice(0, LEAST_TRIALS), *(slice(i, i + 1) for i in range(LEAST_TRIALS, count))]

    def missing(self, rate: float) -> RunSpec | None:
        """The trial at this rate, where it is still to be run."""
        spec = self.spec(rate)
        record = self._known(spec)
        if record is not None and record.status == "pruned" and self._stop(self._history(spec)) is None:
            record = None  # it was stopped beside other trials than these, and would not be now
        return spec if record is None else None

    def rule(self) -> StopRule | None:
        """By which the next trials are stopped."""
        if self.settings.stop == "never" or len(self._finished) < LEAST_TRIALS:
            return None
        return StopRule(self.objective, tuple(map(tuple, self._finished)), self.first.training.epochs)

    def settle(self, rate: float) -> None:
        """Take note of what came of the trial at this rate. Raises `StoreError` where it left no record."""
        spec = self.spec(rate)
        record = self._known(spec) or self.store.record(spec.id)
        if record is None:
            raise StoreError(f"trial {spec.id} left no record; run the same command again")
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
        sign = self.objective.sign  # as it is shown: not turned round
        return MethodTuning(
            method=self.method.label,
            middle=self.middle,
            trials=[t.model_copy(update={"value": None if t.value is None else sign * t.value}) for t in self.trials],
            chosen=self.middle if failed else best,
            edge=None if failed else edge(self.values),
            note="no trial came to its end; the rate is the default" if failed else None,
        )

    def spec(self, rate: float) -> RunSpec:
        """The trial at this rate, as a run."""
        method = self.method.model_copy(update={"learning_rate": rate, "title": f"{self.method.label} at {rate:g}"})
        return self.first.model_copy(update={"method": method, "seed": self.settings.seed})

    def _known(self, spec: RunSpec) -> RunRecord | None:
        """The record that settles a trial: of a run that is done, diverged, or was pruned."""
        record = self.store.finished(spec.id)
        if record is None and (kept := self.store.record(spec.id)) and kept.status == "pruned":
            record = kept if self.store.intact(kept) else None
        return record

    def _history(self, spec: RunSpec) -> list[float]:
        return self.objective.history(self.store.folder(spec.id))

    def _value(self, record: RunRecord) -> float:
        assert record.results is not None
        kept = record.results.validation
        return self.objective.of(kept.loss, kept.metrics)

    def _stop(self, history: list[float]) -> int | None:
        if self.settings.stop == "never":
            return None
        return stopped_at(history, self._finished, self.first.training.epochs)
