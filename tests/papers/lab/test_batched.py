"""Batches against loops, streams of random numbers, and the measurement of the speed-up."""

from __future__ import annotations

import pytest
import torch

from tunewise.papers.lab import batched
from tunewise.papers.lab.batched import batch, generator, loop, normal, speedup


def run(a, b):
    return (a @ b).sum(), torch.linalg.svdvals(a)


def test_a_batch_is_the_loop_also_in_chunks():
    """float64, to 1e-12."""
    a, b = normal(generator(0), 11, 4, 5), normal(generator(1), 11, 5)
    for chunk in (None, 1, 4):
        for got, expected in zip(batch(run, a, b, chunk=chunk), loop(run, a, b)):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_streams_differ_by_seed_and_by_each_part_and_come_again():
    def draws(*key):
        return normal(generator(*key), 8).tolist()

    keys = [(0,), (1,), (0, 1), (0, 2), (0, 1, 1), (0, 0), (1, 0), (0, 0, 0)]
    assert len({tuple(draws(*key)) for key in keys}) == len(keys)
    assert draws(3, 4, 5) == draws(3, 4, 5)


def test_the_speed_up_is_time_alone_over_time_in_the_batch(monkeypatch):
    """With a clock that ticks 1 a run of the loop and 0.25 a run of the batch the ratio is 4, exactly."""
    now = [0.0]
    monkeypatch.setattr(batched.time, "perf_counter", lambda: now[0])

    def spend(cost):
        def work(run, *arguments, chunk=None):
            now[0] += cost * len(arguments[0])

        return work

    monkeypatch.setattr(batched, "batch", spend(0.25))
    monkeypatch.setattr(batched, "loop", spend(1.0))
    found = speedup("x", run, torch.zeros(40), looped=8, rounds=3)
    assert found.ratio == pytest.approx(4.0) and found.low == pytest.approx(4.0) and found.high == pytest.approx(4.0)
    assert (found.batch, found.looped, found.rounds) == (40, 8, 3)


def test_a_measured_speed_up_has_an_interval_around_it():
    found = speedup("x", run, normal(generator(0), 64, 4, 5), normal(generator(1), 64, 5), looped=4, rounds=3)
    assert 0 < found.low < found.ratio < found.high
