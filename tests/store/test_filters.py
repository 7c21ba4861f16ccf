"""Choosing and sorting rows of the table."""

from __future__ import annotations

import pytest

from stored_runs import record_of, stored_spec
from tunewise.errors import SpecError
from tunewise.store.filters import flat, ordered, plain, selected
from tunewise.store.table import RunRow, row_of


@pytest.fixture(scope="module")
def rows() -> list[RunRow]:
    return [
        row_of(record_of(stored_spec("lora", 0), accuracy=0.7)),
        row_of(record_of(stored_spec("cla", 1, model="Other/Large"), accuracy=0.8)),
        row_of(record_of(stored_spec("lora", 2, batch_size=64), "diverged")),
        RunRow("f" * 16, "unfinished"),
    ]


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"method": "lora"}, [0, 2]),
        ({"method": "lora, cla"}, [0, 1, 2]),
        ({"status": "done"}, [0, 1]),
        ({"status": "diverged,unfinished"}, [2, 3]),
        ({"model": "large"}, [1]),
        ({"where": ["seed=2"]}, [2]),
        ({"where": ["rate=2e-3"]}, []),
        ({"where": ["training.batch_size=64"]}, [2]),
        ({"where": ["batch_size=64.0"]}, [2]),
        ({"where": ["epochs=2", "status=done"]}, [0, 1]),
        ({"where": ["linearised=false"]}, [0, 1, 2]),
        ({"where": ["test=none"]}, [2, 3]),
        ({"where": ["targets=qv"], "method": "cla"}, [1]),
        ({"where": ["epochs=two"]}, []),
    ],
)
def test_rows_that_fit(how: dict, kept: list[int], rows: list[RunRow]) -> None:
    assert selected(rows, **how) == [rows[i] for i in kept]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"status": "dnoe"}, "did you mean 'done'"),
        ({"method": "lroa"}, "no run of method 'lroa' here; did you mean 'lora'"),
        ({"where": ["epoch=3"]}, "no 'epoch'; did you mean 'epochs'"),
        ({"where": ["epochs"]}, "write KEY=VALUE"),
        ({"where": ["path=x"]}, "may be model.path or data.path; write it out"),
    ],
)
def test_what_is_unknown_is_named(how: dict, message: str, rows: list[RunRow]) -> None:
    with pytest.raises(SpecError, match=message):
        selected(rows, **how)


def test_an_empty_table_fits_everything() -> None:
    assert selected([], method="lora", status="done", where=["epochs=3"]) == []


def test_order_has_unknown_values_last_either_way(rows: list[RunRow]) -> None:
    assert [row.test for row in ordered(rows, "test")] == [0.7, 0.8, None, None]
    assert [row.test for row in ordered(rows, "-test")] == [0.8, 0.7, None, None]
    with pytest.raises(SpecError, match="can't sort by 'tset'; did you mean 'test'"):
        ordered(rows, "tset")


def test_plain_and_flat(rows: list[RunRow]) -> None:
    assert plain(rows[0])["spec"]["training"]["epochs"] == 2
    assert plain(rows[3])["spec"] is None
    assert flat({"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}]}) == {"a.b": 1, "a.c": {}, "d": [1, {"e": 2}]}
