"""Sizes and times: parsed from flags, formatted, refused in one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewise.advise.units import format_seconds, parse_memory, parse_seconds, parse_tolerance
from tunewise.errors import SpecError
from tunewise.number_format import memory


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6GB", 6 * 10**9),
        ("6GiB", 6 * 2**30),
        ("6G", 6 * 2**30),
        ("6 gb", 6 * 10**9),
        ("600MB", 600 * 10**6),
        ("1.5GiB", 3 * 2**29),
        ("1,5 GB", 1_500_000_000),
        (".5kb", 500),
        ("1000000", 10**6),
        ("2TiB", 2**41),
        ("80 bytes", 80),
    ],
)
def test_memory_is_read_as_people_write_it(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("90", 90),
        ("90s", 90),
        ("10min", 600),
        ("10 minutes", 600),
        ("2h", 7200),
        ("1.5 hours", 5400),
        ("1h30min", 5400),
        ("1h 30m 5s", 5405),
        ("1 day", 86400),
        ("0,5h", 1800),
    ],
)
def test_time_is_read_as_people_write_it(text, time):
    assert parse_seconds(text) == time


@pytest.mark.parametrize("text", ["", "GB", "six GB", "6XB", "-6GB", "0GB", "6GB6", "1e9", "6 GB please"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(SpecError, match="memory"):
        parse_memory(text)


@pytest.mark.parametrize("text", ["", "h", "soon", "10 lightyears", "-1h", "0s", "1h soon", "10min!"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(SpecError, match="time"):
        parse_seconds(text)


@given(st.integers(1, 2**43))
def test_a_size_that_is_written_is_read_back_within_what_is_shown(size):
    assert parse_memory(memory(size)) == pytest.approx(size, rel=5e-3, abs=1)


@given(st.floats(0.1, 1e6))
def test_a_time_that_is_written_is_read_back_within_what_is_shown(time):
    assert parse_seconds(format_seconds(time)) == pytest.approx(time, rel=0.06)


def test_a_tolerance_is_in_points_for_shares_and_in_its_own_unit_else():
    assert parse_tolerance("0.5", percent=True) == 0.005
    assert parse_tolerance("0.5 %", percent=True) == 0.005
    assert parse_tolerance("1 point", percent=True) == 0.01
    assert parse_tolerance("0.5", percent=False) == 0.5
    for text in ("", "many", "-1", "nan", "inf"):
        with pytest.raises(SpecError, match="tolerance"):
            parse_tolerance(text, percent=True)
    with pytest.raises(SpecError, match="up to 100"):
        parse_tolerance("100", percent=True)
