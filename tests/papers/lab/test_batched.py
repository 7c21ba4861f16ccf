"""Batches against loops, and streams of random numbers."""

from __future__ import annotations

import torch

from papers.lab.expectations import loop
from tunewise.papers.lab.batched import batch, generator, normal


def run(a, b):
    return (a @ b).sum(), torch.linalg.svdvals(a)


def test_a_batch_equals_the_loop_also_in_chunks():
    """float64, to 1e-12."""
    a, b = normal(generator(0), 11, 4, 5), normal(generator(1), 11, 5)
    for chunk in (None, 1, 4):
        for result, expected in zip(batch(run, a, b, chunk=chunk), loop(run, a, b)):
            torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_streams_differ_by_seed_and_by_each_part_and_repeat():
    def draws(*key):
        return normal(generator(*key), 8).tolist()

    keys = [(0,), (1,), (0, 1), (0, 2), (0, 1, 1), (0, 0), (1, 0), (0, 0, 0)]
    assert len({tuple(draws(*key)) for key in keys}) == len(keys)
    assert draws(3, 4, 5) == draws(3, 4, 5)
