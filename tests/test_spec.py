"""What names a run, and what a wrong spec is told."""

from __future__ import annotations

from typing import Any

import pytest

from tunewise.errors import SpecError
from tunewise.spec import CompareSpec, apart, parse

PLAIN: dict[str, Any] = {"model": "base", "data": "toys.csv", "methods": "lora,c3la,paca", "seeds": [1]}
KNOWN: dict[str, Any] = {
    "model": {"path": "base", "digest": "aa"},
    "data": {"path": "toys.csv", "digest": "bb"},
    "methods": "lora",
    "seeds": [0],
}


def test_files_that_hold_the_same_name_the_same_run() -> None:
    (here,) = parse(CompareSpec, KNOWN).runs()
    (there,) = parse(CompareSpec, {**KNOWN, "data": {"path": "moved/toys.csv", "digest": "bb"}}).runs()
    (changed,) = parse(CompareSpec, {**KNOWN, "data": {"path": "toys.csv", "digest": "cc"}}).runs()
    assert here.id == there.id != changed.id


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"training": {"epoch": 3}}, "file.yaml: unknown key 'training.epoch'; did you mean 'epochs'?"),
        ({"methods": [{"name": "lora", "rnk": 4}]}, "file.yaml: unknown key 'methods.0.rnk'; did you mean 'rank'?"),
        ({"training": {"epochs": 0}}, "file.yaml: training.epochs = 0: input should be greater than or equal to 1"),
        ({"model": {"revision": "v2"}}, "file.yaml: 'model.path' is missing"),
        (
            {"methods": "lora,lora"},
            "file.yaml: method 'lora' is listed twice; each row of a comparison must be its own",
        ),
    ],
    ids=["unknown", "unknown in a list", "too small", "missing", "twice"],
)
def test_a_wrong_spec_is_told_in_one_line(content: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as fault:
        parse(CompareSpec, {**PLAIN, **content}, source="file.yaml")
    assert str(fault.value) == said


def test_a_file_says_in_which_manner_besides() -> None:
    manner, content = apart(
        {**PLAIN, "out": "there/", "jobs": 2, "costs": "no", "track": "wandb, trackio", "title": None}
    )
    assert content == PLAIN
    assert (manner.out, manner.jobs, manner.costs) == ("there", 2, False)
    assert (manner.track, manner.title) == (["wandb", "trackio"], "Which fine-tuning method?")
    for wrong in ({"jobs": 0}, {"jobs": "2"}, {"jobs": True}):
        with pytest.raises(SpecError, match=f"file.yaml: {next(iter(wrong))} = "):
            apart(wrong, "file.yaml")
