"""Trackers: the Trainer's own integrations get what a run logs, one tracked run each, and training is the same."""

from __future__ import annotations

import os

import pytest

from tiny import save_tiny_model, save_toy_csv
from tunewise.errors import SpecError
from tunewise.run import run
from tunewise.spec import StudySpec
from tunewise.store.folders import RunStore
from tunewise.study.plan import make_plan
from tunewise.training.tracking import check_trackers

pytest.importorskip("tensorboard")


@pytest.fixture(scope="module")
def plan_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracking")
    spec = StudySpec.model_validate(
        {
            "model": str(save_tiny_model(folder / "model")),
            "data": str(save_toy_csv(folder / "toy.csv", rows=60)),
            "methods": "lora,cla",
            "seeds": [0],
            "training": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-2},
        }
    )
    return lambda store: make_plan(spec, store)


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_gets_every_run_apart_and_results_stay_the_same(plan_of, tmp_path):
    before = os.environ.get("TENSORBOARD_LOGGING_DIR")
    plain, tracked = RunStore(tmp_path / "plain"), RunStore(tmp_path / "tracked")
    plan = plan_of(plain)
    for planned in plan.runs:
        one = planned.spec
        expected = run(one, plain, task=plan.task)
        record = run(one, tracked, task=plan.task, track=["tensorboard"])
        assert record.results == expected.results
        (folder,) = (tmp_path / "tracked" / "tensorboard").glob(f"{one.method.name}-seed0-*")
        found = scalars(folder)
        assert len(found["train/loss"]) == planned.steps
        assert min(found["eval/loss"]) == pytest.approx(expected.results.validation.loss, abs=1e-6)
        assert len(found["eval/accuracy"]) == 2
    assert os.environ.get("TENSORBOARD_LOGGING_DIR") == before
    assert not list((tmp_path / "plain").glob("tensorboard"))


def test_a_tracker_that_is_not_there_is_one_line():
    with pytest.raises(SpecError, match="no such tracker; did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])
    with pytest.raises(SpecError, match="pip install"):
        check_trackers(["wandb"])
