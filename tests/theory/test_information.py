"""The information-theoretic bound: Table 1's counts, and the formula in an independent writing."""

import math

import numpy as np
import pytest

from tunewise.catalog import CATALOG, Chain, Method
from tunewise.errors import SpecError
from tunewise.theory import information_bound, trained_parameters

VIT_BASE = [(768, 768)] * 24  # q and v of 12 blocks


@pytest.mark.parametrize(
    ("method", "expected"),
    [("asym", 16.2), ("cla", 16.2), ("r-cla", 16.2), ("paca", 16.2), ("lora", 22.9), ("lora+", 22.9)],
)
def test_vit_base_is_16_2_for_the_methods_that_train_one_factor(method, expected):
    """q and v, r 16, N 50,000, sigma 1, 32 bits; sqrt(2) times that where both factors are trained."""
    p = trained_parameters(method, VIT_BASE, rank=16)
    assert round(float(information_bound(p, samples=50_000, bits=32, sigma=1.0)), 1) == expected


LAYERS = [(30, 70), (50, 20), (40, 40)]
N_SUM, M_SUM, MN_SUM = 120, 130, 30 * 70 + 50 * 20 + 40 * 40
TABLE_1 = {  # at r = 3, k = 2 links where there is a chain
    "fft": MN_SUM,
    "head": 0,
    **dict.fromkeys(["lora", "lora+", "rslora", "lora-one"], 3 * (N_SUM + M_SUM)),
    **dict.fromkeys(["asym", "cla", "r-cla", "paca", "d-paca"], 3 * N_SUM),
    "cola": 2 * 3 * (N_SUM + M_SUM),
    **dict.fromkeys(["rac", "c3la", "r-c3la", "c-paca"], 2 * 3 * N_SUM),
    "cla-rows": 3 * M_SUM,
}


@pytest.mark.parametrize("method", CATALOG)
def test_parameters_of_every_method_in_the_catalog_are_table_1s(method):
    links = 2 if CATALOG[method].chain else 1
    assert int(trained_parameters(method, LAYERS, rank=3, links=links)) == TABLE_1[method]


def test_parameters_are_the_entries_of_the_factors():
    """Against arrays of the shapes that are trained."""
    a, b = [np.zeros((3, m)) for _, m in LAYERS], [np.zeros((n, 3)) for n, _ in LAYERS]
    assert int(trained_parameters("lora", LAYERS, 3)) == sum(x.size for x in a + b)
    assert int(trained_parameters("cla", LAYERS, 3)) == sum(x.size for x in b)
    assert int(trained_parameters("cla-rows", LAYERS, 3)) == sum(x.size for x in a)


def test_a_layers_share_is_capped_layer_by_layer():
    layers = [(10, 4), (10, 1000)]
    assert int(trained_parameters("cla", layers, rank=8)) == 10 * 4 + 8 * 10
    assert int(trained_parameters("lora", layers, rank=8)) == 10 * 4 + 8 * 1010
    assert int(trained_parameters("cola", layers, rank=8, links=10_000)) == 10 * 4 + 10 * 1000


def test_a_chain_counts_its_own_links_unless_told():
    assert int(trained_parameters("c3la", LAYERS, 2)) == 4 * int(trained_parameters("cla", LAYERS, 2))
    assert int(trained_parameters("c3la", LAYERS, 2, links=1)) == int(trained_parameters("cla", LAYERS, 2))
    by_epoch = Method("B", "random", chain=Chain(every=3))
    assert int(trained_parameters(by_epoch, LAYERS, 2, links=7)) == 7 * 2 * N_SUM
    with pytest.raises(SpecError, match="links=k"):
        trained_parameters(by_epoch, LAYERS, 2)
    with pytest.raises(SpecError, match="no chain"):
        trained_parameters("lora", LAYERS, 2, links=2)


def test_a_frozen_factor_taken_from_the_gradient_counts():
    """It depends on the sample, so it is information about it."""
    frozen = Method("B", "gradient", start="gradient")
    assert int(trained_parameters(frozen, LAYERS, 3)) == 3 * (N_SUM + M_SUM)


def test_the_bound_is_the_square_root_of_the_information_in_nats():
    p, n, q, sigma = 294_912, 50_000, 32, 0.7
    nats = math.log(2**q) * p  # the logarithm of the number of settings of all parameters
    assert float(information_bound(p, n, q, sigma)) == pytest.approx(math.sqrt(2 * sigma**2 * nats / n), rel=1e-14)


def test_it_falls_with_samples_as_one_over_the_root_and_vanishes_without_parameters():
    assert float(information_bound(1000, 400)) == pytest.approx(float(information_bound(1000, 100)) / 2, rel=1e-14)
    assert float(information_bound(0, 100)) == 0.0


def test_it_holds_exactly_for_a_learner_that_memorises():
    """N fair bits, p bits of memory: the mean gap of a loss in [0, 1], in closed form, against the bound.

    It outputs p sample bits and is right on them; elsewhere it is right half the time: gap = p / (2 N).
    """
    for n in (1, 2, 10, 1000):
        for p in range(n + 1):
            assert p / (2 * n) <= float(information_bound(p, n, bits=1, sigma=0.5)) + 1e-15


def test_vacuity_is_said_beside_it():
    assert information_bound(10**6, 1000).vacuous
    assert not information_bound(10, 10**6).vacuous


@pytest.mark.parametrize("method", ["peft:dora", "peft:loha"])
def test_a_method_of_pefts_own_is_in_no_table(method: str) -> None:
    with pytest.raises(SpecError, match=f"'{method}'.*attached model"):
        trained_parameters(method, LAYERS, rank=3)
