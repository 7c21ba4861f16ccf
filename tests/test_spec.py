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
CHAIN: dict[str, Any] = {
    **KNOWN,
    "task": "image",
    "methods": [{"name": "r-c3la", "restart_every": 2, "weight_decay": 0.1}],
    "rank": 4,
    "alpha": 3,
    "targets": "query,value",
    "layers": "last 2",
    "metric": "f1",
    "training": {"epochs": 5, "learning_rate": 1e-3, "prefix_dropout": False, "save_every": 7},
}


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        (PLAIN, ["dc1fe006a033e82c", "2e3ce9c9275fdc96", "523361a2891f6384"]),
        (KNOWN, ["830c38ae89ec8615"]),
        (CHAIN, ["9d37db8495ed7c2b"]),
        ({**CHAIN, "methods": "fft"}, ["f8f41b1c5feafac1"]),
    ],
    ids=["plain", "digests", "chain", "fft"],
)
def test_finished_runs_keep_their_names(content: dict[str, Any], ids: list[str]) -> None:
    """A name that moves makes every folder of an earlier release one that isn't found."""
    assert [run.id for run in parse(CompareSpec, content).runs()] == ids


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
    assert (manner.out, manner.jobs, manner.pack, manner.costs) == ("there", 2, 1, False)
    assert (manner.track, manner.title) == (["wandb", "trackio"], "Which fine-tuning method?")
    for wrong in ({"jobs": 0}, {"pack": "2"}, {"jobs": True}):
        with pytest.raises(SpecError, match=f"file.yaml: {next(iter(wrong))} = "):
            apart(wrong, "file.yaml")
