"""The search on a tiny model: equal budgets, validation alone, nothing done twice, and what the report says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import invoke
from tunewise.errors import DivergedError, InsufficientResources, SpecError
from tunewise.spec import StudySpec
from tunewise.store.documents import read_document
from tunewise.store.folders import RunStore
from tunewise.store.records import TuningReport
from tunewise.study import resources
from tunewise.study.compare import Comparison, compare
from tunewise.study.executors.serial import SerialExecutor
from tunewise.study.loop import run_study
from tunewise.study.monitor import Monitor, StudyListener
from tunewise.study.plan import Plan, make_plan
from tunewise.study.policies.rates import RatePolicy, apply_known_rates
from tunewise.training.events import EpochDone, Event, Interrupted, Listener, RunFinished, RunStarted


class Notes(StudyListener):
    """Remembers events and totals."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.totals: list[int] = []

    def progressed(self, monitor: Monitor, message: str) -> None:
        self.totals.append(monitor.total)

    def on(self, event: Event) -> None:
        self.events.append(event)

    def started(self) -> list[str]:
        return [e.label for e in self.events if isinstance(e, RunStarted)]


def tune(plan: Plan, store: RunStore, listener: Listener) -> TuningReport:
    """The trials of a plan, done in this process."""
    policy, monitor = RatePolicy(plan, store), Monitor.of(plan, store, listener)
    with SerialExecutor(store, monitor) as executor:
        run_study(policy, executor, store, monitor)
    return policy.report()


def spec_of(model: Path, data: Path, **changes: object) -> StudySpec:
    content: dict[str, object] = {
        "model": str(model),
        "data": str(data),
        "methods": ["head", "fft"],
        "rank": 4,
        "seeds": 1,
        "tuning": {"trials": 3, "factor": 10, "extend": 0},
        "measures": "none",
        "training": {"epochs": 1, "batch_size": 16, "max_length": 16},
    }
    return StudySpec.model_validate(content | changes)


@pytest.fixture(scope="module")
def spec(tiny_model: Path, toy_csv: Path) -> StudySpec:
    return spec_of(tiny_model, toy_csv)


@pytest.fixture(scope="module")
def searched(spec: StudySpec, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Notes]:
    notes = Notes()
    return compare(spec, tmp_path_factory.mktemp("tuned"), costs=False, listener=notes), notes


def report_of(found: Comparison) -> TuningReport:
    assert found.tuning is not None
    return found.tuning


def test_every_method_has_the_same_number_of_trials_around_its_own_default(searched) -> None:
    found, _ = searched
    assert {row.method: sorted(t.rate for t in row.trials) for row in report_of(found).methods} == {
        "head": [1e-2, 1e-1, 1],
        "fft": [2e-5, 2e-4, 2e-3],
    }


def test_the_rate_chosen_has_the_lowest_validation_loss_of_the_trials_own_records(searched) -> None:
    found, _ = searched
    store = RunStore(found.folder.parent)
    for row in report_of(found).methods:
        losses = {t.rate: store.record(t.run).results.validation.loss for t in row.trials}
        assert {t.rate: t.value for t in row.trials} == losses
        assert row.chosen == min(losses, key=losses.__getitem__)


def test_the_runs_are_made_with_the_chosen_rates_at_seeds_that_no_trial_has(searched) -> None:
    found, _ = searched
    chosen = {row.method: row.chosen for row in report_of(found).methods}
    assert len(found.records) == 2
    for record in found.records:
        assert record.spec.learning_rate == chosen[record.spec.method.label]
        assert record.spec.seed == 0
    store = RunStore(found.folder.parent)
    assert {store.record(t.run).spec.seed for row in report_of(found).methods for t in row.trials} == {1000}


def test_progress_counts_trials_as_runs(searched) -> None:
    _, notes = searched
    assert sum(isinstance(e, RunFinished) for e in notes.events) == 8
    assert max(notes.totals) == notes.totals[-1] == 6 + 2
    assert "head at 0.1" in notes.started()


def test_a_finished_search_is_not_repeated(searched, spec) -> None:
    found, _ = searched
    notes = Notes()
    again = compare(spec, found.folder.parent, costs=False, listener=notes)
    assert notes.started() == []
    assert again.tuning == found.tuning
    assert again.folder == found.folder


def test_a_finished_search_is_shown_and_checked_with_what_it_chose(
    searched, spec, tmp_path, monkeypatch, capsys
) -> None:
    """Nothing is to do, so there is no run that could need memory; with one record gone, one run is."""
    found, _ = searched
    store = RunStore(found.folder.parent)
    (file := tmp_path / "spec.yaml").write_text(json.dumps(spec.model_dump(mode="json", exclude_defaults=True)))
    monkeypatch.setattr(resources, "available_memory", lambda: 1000)

    def planned(expected: int) -> tuple[str, str]:
        words = ["compare", f"--spec={file}", f"--out={store.root}", "--no-costs", "--measures=none", "--dry-run"]
        assert invoke(monkeypatch, *words) == expected
        shown = capsys.readouterr()
        return " ".join(shown.out.split()), shown.err

    assert apply_known_rates(make_plan(spec, store), store).done == {record.id for record in found.records}
    out, _ = planned(0)
    assert "0 runs to do, 2 done already" in out and "trials" not in out
    record = store.folder(found.records[0].id) / "run.json"
    moved = record.rename(tmp_path / "run.json")
    out, error = planned(InsufficientResources.exit_code)
    assert "1 run to do, 1 done already" in out and "not enough memory: head on" in error
    moved.rename(record)
    trial = store.folder(report_of(found).methods[0].trials[0].run) / "run.json"
    moved = trial.rename(tmp_path / "run.json")
    assert "first 1 trial for the learning rates" in planned(InsufficientResources.exit_code)[0]
    moved.rename(trial)


def test_the_test_split_has_no_say(searched, spec) -> None:
    """With the test scores of all trials turned upside down, the same rates are chosen."""
    found, _ = searched
    store = RunStore(found.folder.parent)
    kept = {}
    for row in report_of(found).methods:
        for trial in row.trials:
            file = store.folder(trial.run) / "run.json"
            kept[file] = file.read_text()
            content = json.loads(kept[file])
            del content["checksum"]
            content["results"]["test"]["loss"] = 9.0 if trial.rate == row.chosen else 0.0
            content["results"]["test"]["metrics"] = {"accuracy": 0.0, "macro_f1": 0.0}
            file.write_text(json.dumps(content))
    try:
        again = tune(make_plan(spec, store), store, Listener())
    finally:
        for file, text in kept.items():
            file.write_text(text)
    assert again == found.tuning


def test_what_was_run_can_be_run_again_from_the_folder(searched) -> None:
    found, _ = searched
    stored = StudySpec.model_validate_json((found.folder / "compare.json").read_text())
    assert stored.tuning is None
    assert {r.id for r in stored.runs()} == {r.id for r in found.records}
    assert read_document(found.folder / "tuning.json", TuningReport, "") == found.tuning


def test_the_report_shows_every_trial_and_a_best_rate_on_the_edge(searched) -> None:
    found, _ = searched
    page = found.report.read_text()
    assert "Each rate was searched for with 3 trials, a factor of 10" in page
    for row in report_of(found).methods:
        for trial in row.trials:
            assert f"{trial.rate:g}: {trial.value:.4f}" in page
        if row.edge:
            assert f"{row.method}: the best rate, {row.chosen:g}, is the {row.edge} that was tried" in page
    assert any(row.edge for row in report_of(found).methods)


class StopAfter(Notes):
    """Asks for a stop after so many epochs."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.left = epochs

    def on(self, event: Event) -> None:
        super().on(event)
        if isinstance(event, EpochDone):
            self.left -= 1
            self.stop_requested = self.left <= 0


def test_a_search_that_was_stopped_goes_on_and_finds_the_same(searched, tiny_model, toy_csv, tmp_path: Path) -> None:
    found, _ = searched
    spec = spec_of(tiny_model, toy_csv, methods=["head"])
    store = RunStore(tmp_path)
    with pytest.raises(Interrupted):
        tune(make_plan(spec, store), store, StopAfter(2))
    assert len(RatePolicy(make_plan(spec, store), store).upcoming()) == 2
    notes = Notes()
    (row,) = tune(make_plan(spec, store), store, notes).methods
    assert notes.started() == ["head at 1", "head at 0.01"]
    assert row == report_of(found).methods[0]


def test_a_given_rate_is_not_tuned_and_the_report_says_so(searched, tiny_model, toy_csv) -> None:
    found, _ = searched
    spec = spec_of(tiny_model, toy_csv, methods=["head", {"name": "fft", "learning_rate": 0.002}])
    notes = Notes()
    partly = compare(spec, found.folder.parent, costs=False, listener=notes)
    assert not any(label.startswith("fft at") for label in notes.started())
    row = next(row for row in report_of(partly).methods if row.method == "fft")
    assert (row.given, row.chosen, row.trials) == (True, 0.002, [])
    page = partly.report.read_text()
    assert "Given, not tuned: fft; the budgets are unequal there." in page
    assert "0.002, given, not tuned" in page


def test_nothing_to_tune_is_refused_with_the_way_out(tiny_model, toy_csv, tmp_path: Path) -> None:
    spec = spec_of(tiny_model, toy_csv, training={"epochs": 2, "learning_rate": 0.01})
    store = RunStore(tmp_path)
    with pytest.raises(SpecError, match="nothing to tune"):
        tune(make_plan(spec, store), store, Listener())


def test_the_seed_of_the_trials_is_never_one_of_the_runs(tiny_model, toy_csv) -> None:
    assert spec_of(tiny_model, toy_csv, seeds=[0, 1]).tuning_seed == 1000
    assert spec_of(tiny_model, toy_csv, seeds=[999, 1000]).tuning_seed == 1001


def test_further_trials_are_spent_on_all_methods_where_one_lies_on_an_edge(searched, tiny_model, toy_csv) -> None:
    found, _ = searched
    store = RunStore(found.folder.parent)
    spec = spec_of(tiny_model, toy_csv, tuning={"trials": 3, "factor": 10, "extend": 1})
    notes = Notes()
    rows = tune(make_plan(spec, store), store, notes).methods
    assert [len(row.trials) for row in rows] == [4, 4]
    assert len(notes.started()) == 2
    before = {row.method: row for row in report_of(found).methods}
    for row in rows:
        if before[row.method].edge == "highest":
            assert row.trials[-1].rate == pytest.approx(10 * before[row.method].chosen)


def test_a_method_whose_trials_all_fail_keeps_its_default_and_says_so(
    tiny_model: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: object, **__: object) -> None:
        raise DivergedError("the training loss is nan at step 1; lower the learning rate")

    monkeypatch.setattr("tunewise.run._train_and_measure", diverge)
    spec = spec_of(tiny_model, toy_csv, methods=["head"], tuning={"trials": 2, "extend": 0})
    store = RunStore(tmp_path)
    (row,) = tune(make_plan(spec, store), store, Listener()).methods
    assert [t.status for t in row.trials] == ["diverged", "diverged"]
    assert (row.chosen, row.edge) == (0.1, None)
    assert "no trial came to its end" in (row.note or "")


def test_a_policy_goes_on_from_the_records_alone(searched, spec) -> None:
    """Asked again from the same records, a policy has nothing to do and the same report."""
    found, _ = searched
    store = RunStore(found.folder.parent)
    policy = RatePolicy(make_plan(spec, store), store)
    assert policy.ask() == [] and policy.upcoming() == []
    assert policy.report() == found.tuning


@pytest.mark.slow
def test_trials_in_processes_are_the_same_to_the_last_bit(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    spec = spec_of(
        tiny_model, toy_csv, methods=["lora", "cla"], training={"epochs": 4, "batch_size": 16, "max_length": 16}
    )
    alone = compare(spec, tmp_path / "alone", costs=False)
    jobs = compare(spec, tmp_path / "jobs", costs=False, jobs=2)
    assert jobs.tuning == alone.tuning
    assert [r.results for r in jobs.records] == [r.results for r in alone.records]
