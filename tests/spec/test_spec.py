"""What names a run, and what a wrong spec is told."""

from __future__ import annotations

from typing import Any

import pytest

from tunewise.errors import SpecError
from tunewise.spec import StudySpec, parse, split_options

PLAIN: dict[str, Any] = {"model": "base", "data": "toys.csv", "methods": "lora,c3la,paca", "seeds": [1]}
KNOWN: dict[str, Any] = {
    "model": {"path": "base", "digest": "aa"},
    "data": {"path": "toys.csv", "digest": "bb"},
    "methods": "lora",
    "seeds": [0],
}


def test_files_that_hold_the_same_name_the_same_run() -> None:
    (here,) = parse(StudySpec, KNOWN).runs()
    (there,) = parse(StudySpec, {**KNOWN, "data": {"path": "moved/toys.csv", "digest": "bb"}}).runs()
    (changed,) = parse(StudySpec, {**KNOWN, "data": {"path": "toys.csv", "digest": "cc"}}).runs()
    assert here.id == there.id != changed.id


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"training": {"epoch": 3}}, "file.yaml: unknown key 'training.epoch'; did you mean 'epochs'?"),
        ({"methods": [{"name": "lora", "rnk": 4}]}, "file.yaml: method lora: unknown key 'rnk'; did you mean 'rank'?"),
        ({"training": {"epochs": 0}}, "file.yaml: training.epochs = 0: input should be greater than or equal to 1"),
        ({"model": {"revision": "v2"}}, "file.yaml: 'model.path' is missing"),
        (
            {"methods": "lora,lora"},
            "file.yaml: method 'lora' is listed twice; each row must be its own",
        ),
    ],
    ids=["unknown", "unknown in a list", "too small", "missing", "twice"],
)
def test_a_wrong_spec_is_told_in_one_line(content: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as fault:
        parse(StudySpec, {**PLAIN, **content}, source="file.yaml")
    assert str(fault.value) == said


def test_options_of_execution_are_split_from_a_file() -> None:
    options, content = split_options(
        {**PLAIN, "out": "there/", "jobs": 2, "costs": "no", "track": "wandb, trackio", "title": None}
    )
    assert content == PLAIN
    assert (options.out, options.jobs, options.costs) == ("there", 2, False)
    assert (options.track, options.title, options.executor_name) == (["wandb", "trackio"], None, "processes")
    assert split_options({})[0].executor_name == "serial"
    for wrong in ({"jobs": 0}, {"jobs": "2"}, {"jobs": True}):
        with pytest.raises(SpecError, match=f"file.yaml: {next(iter(wrong))} = "):
            split_options(wrong, "file.yaml")
    with pytest.raises(SpecError, match="jobs = 2 is for executor processes"):
        split_options({"jobs": 2, "executor": "ray"})


def test_a_rank_axis_makes_a_row_of_each_rank() -> None:
    spec = parse(StudySpec, {**PLAIN, "methods": "lora,fft", "rank": [4, 8]})
    assert [method.label for method in spec.methods] == ["lora r=4", "lora r=8", "fft"]
    assert spec.is_comparison


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"epochs": 4}},
        {"training": {"linearised": True}},
        {"training": {"weight_decay": 0.1}},
        {"training": {"learning_rate": 0.5}},
        {"rank": 4},
        {"alpha": 3},
        {"targets": "all-linear"},
        {"layers": "last 2"},
        {"links": 3},
        {"restart_every": 2},
        {"metric": "f1"},
        {"task": "image"},
        {"seeds": [2]},
        {"data": {"path": "toys.csv", "train_size": 7}},
    ],
)
def test_what_decides_a_result_decides_the_id(change: dict[str, Any]) -> None:
    content = {**PLAIN, "methods": "c3la"}
    (before,), (after,) = (parse(StudySpec, made).runs() for made in (content, {**content, **change}))
    assert before.id != after.id


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"save_every": 5}},
        {"alpha": 16},
        {"rank": 8},
        {"measures": "none"},
        {"methods": [{"name": "c3la", "title": "chained"}]},
    ],
)
def test_what_does_not_decide_a_result_leaves_the_id(change: dict[str, Any]) -> None:
    content = {**PLAIN, "methods": "c3la"}
    (before,), (after,) = (parse(StudySpec, made).runs() for made in (content, {**content, **change}))
    assert before.id == after.id
