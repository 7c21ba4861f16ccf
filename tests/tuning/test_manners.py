"""A search whose trials are packed or done in processes finds what one after another finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunewise.comparison import compare
from tunewise.jobs.execute import doing
from tunewise.planning import make_plan
from tunewise.spec import CompareSpec
from tunewise.store.folders import RunStore
from tunewise.store.records import TuningReport
from tunewise.training.events import Listener
from tunewise.training.journal import read_history
from tunewise.tuning import tune


def spec_of(model: Path, data: Path, **changes: object) -> CompareSpec:
    content: dict[str, object] = {
        "model": str(model),
        "data": {"path": str(data), "train_size": 48, "validation_size": 24, "test_size": 16},
        "methods": ["lora", "cla"],
        "rank": 2,
        "seeds": 1,
        "tuning": {"trials": 3, "factor": 10},
        "measures": "none",
        "training": {"epochs": 2, "batch_size": 16, "max_length": 16},
    }
    return CompareSpec.model_validate(content | changes)


def found_with(spec: CompareSpec, folder: Path, **manner: Any) -> tuple[TuningReport, RunStore]:
    store = RunStore(folder)
    plan = make_plan(spec, store)
    options = {"jobs": None, "pack": 1, "prefixes": None, **manner}
    return tune(plan, store, Listener(), do=doing(plan, store, Listener(), **options)), store


def same(one: TuningReport, two: TuningReport) -> None:
    """Values to 1e-5, all else exactly."""
    for a, b in zip(one.methods, two.methods, strict=True):
        assert (a.method, a.chosen, a.edge, a.note) == (b.method, b.chosen, b.edge, b.note)
        for s, t in zip(a.trials, b.trials, strict=True):
            assert (s.rate, s.run, s.status, s.epochs) == (t.rate, t.run, t.status, t.epochs)
            assert t.value == pytest.approx(s.value, abs=1e-5)


def test_packed_trials_choose_what_trials_by_themselves_choose(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    spec = spec_of(tiny_model, toy_csv)
    alone = tune(make_plan(spec, RunStore(tmp_path / "alone")), RunStore(tmp_path / "alone"), Listener())
    packed, store = found_with(spec, tmp_path / "packed", pack=4)
    same(alone, packed)
    computed = [[store.record(trial.run).computed for trial in row.trials] for row in packed.methods]
    four, two = ["packed with 3 other runs"], ["packed with 1 other run"]
    assert computed == [[four, four, two]] * 2  # two trials of each method can't be stopped; then one at a time
    assert all(trial.value > 0.1 for row in packed.methods for trial in row.trials)


@pytest.mark.slow
def test_all_trials_go_together_where_none_is_stopped(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    asked: list[int] = []
    spec = spec_of(tiny_model, toy_csv, tuning={"trials": 2, "factor": 10, "stop": "never", "extend": 2})
    store = RunStore(tmp_path)
    plan = make_plan(spec, store)
    do = doing(plan, store, Listener(), jobs=None, pack=4, prefixes=None)
    rows = tune(
        plan, store, Listener(), do=lambda trials, rules: (asked.append(len(trials)), do(trials, rules))
    ).methods
    assert asked == [4, 2, 2]
    assert [len(row.trials) for row in rows] == [4, 4]


LOSSES = {1.0: [0.9, 0.8, 0.7], 3.0: [0.9, 0.7, 0.6], 1 / 3: [1.0, 1.5, 0.1]}


def test_of_a_pack_one_trial_is_stopped_and_the_other_goes_on(
    tiny_model: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs are real; of the first method the search reads the losses above, of the second its own."""
    training = {"epochs": 3, "batch_size": 16, "max_length": 16, "learning_rate": 1e-3}
    spec = spec_of(tiny_model, toy_csv, tuning={"trials": 3, "factor": 3, "given": True}, training=training)
    first = make_plan(spec, RunStore(tmp_path)).runs[0]
    scripted = {}
    for factor, losses in LOSSES.items():
        rate = float(f"{1e-3 * factor:.3g}")
        method = first.method.model_copy(update={"learning_rate": rate})
        scripted[first.model_copy(update={"method": method, "seed": 1000}).id] = losses

    def history(file: Path) -> list[dict[str, Any]]:
        reached = [e for e in read_history(file) if e["kind"] == "epoch"]
        losses = scripted.get(file.parent.name, [e["validation"]["loss"] for e in reached])
        return [{"kind": "epoch", "validation": {"loss": x, "metrics": {}}} for x, _ in zip(losses, reached)]

    monkeypatch.setattr("tunewise.tuning.stopping.read_history", history)
    found, store = found_with(spec, tmp_path, pack=2)
    one, other = (row.trials[2] for row in found.methods)
    assert (one.status, one.epochs) == ("pruned", 2)
    assert store.record(one.run).status == "pruned"
    assert "stopped after epoch 2 of 3" in store.record(one.run).error
    assert store.record(other.run).status == "done"
    assert store.record(other.run).computed == ["packed with 1 other run"]


@pytest.mark.slow
def test_trials_in_processes_are_the_same_to_the_last_bit(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    spec = spec_of(tiny_model, toy_csv, training={"epochs": 4, "batch_size": 16, "max_length": 16})
    alone = compare(spec, tmp_path / "alone", costs=False)
    jobs = compare(spec, tmp_path / "jobs", costs=False, jobs=2)
    assert jobs.tuning == alone.tuning
    assert [r.results for r in jobs.records] == [r.results for r in alone.records]
