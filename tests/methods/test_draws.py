"""Which columns a link selects, and the laws of a random A."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunewise import CATALOG
from tunewise.methods.draws import columns_of_link, one_hot, random_factor

ONE = {"seed": 3, "layer": "encoder.0.query"}


@given(
    features=st.integers(1, 70),
    rank=st.integers(1, 70),
    link=st.integers(0, 20),
    name=st.sampled_from(["cla", "r-cla"]),
)
def test_a_link_selects_r_distinct_columns(features, rank, link, name):
    rank = min(rank, features)
    found = columns_of_link(CATALOG[name], **ONE, link=link, rank=rank, features=features)
    assert found.dtype == torch.int64 and len(found.unique()) == rank
    assert int(found.min()) >= 0 and int(found.max()) < features


@given(
    features=st.integers(1, 70),
    rank=st.integers(1, 70),
    cycle=st.integers(0, 2),
    name=st.sampled_from(["c3la", "r-c3la"]),
)
def test_ceil_m_over_r_links_touch_every_column(features, rank, cycle, name):
    """Proposition 1 of 2606.13767; in every later cycle too."""
    rank = min(rank, features)
    runs = math.ceil(features / rank)
    links = range(cycle * runs, (cycle + 1) * runs)
    found = [columns_of_link(CATALOG[name], **ONE, link=i, rank=rank, features=features) for i in links]
    assert len(torch.cat(found).unique()) == features


@given(features=st.integers(2, 70), rank=st.integers(1, 30))
def test_before_the_columns_are_used_up_no_two_links_share_any(features, rank):
    rank = min(rank, features)
    whole = features // rank
    for name in ("c3la", "r-c3la"):
        found = [columns_of_link(CATALOG[name], **ONE, link=i, rank=rank, features=features) for i in range(whole)]
        assert len(torch.cat(found).unique()) == whole * rank


def test_blocks_follow_each_other_and_wrap_around():
    """m = 10, r = 4: 0-3, 4-7, 8 9 0 1, 2-5."""
    found = [columns_of_link(CATALOG["c3la"], **ONE, link=i, rank=4, features=10).tolist() for i in range(4)]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [2, 3, 4, 5]]


def test_a_used_up_permutation_is_followed_by_another():
    first, second = (
        torch.cat([columns_of_link(CATALOG["r-c3la"], **ONE, link=i, rank=8, features=64) for i in range(a, a + 8)])
        for a in (0, 8)
    )
    assert not torch.equal(first, second) and torch.equal(first.sort().values, second.sort().values)


def test_sampled_columns_are_uniform():
    """2,000 seeds, 4 of 16 columns: each column 500 times, within 5 standard deviations (19.4 each)."""
    counts = torch.zeros(16)
    for seed in range(2000):
        counts[columns_of_link(CATALOG["r-cla"], seed=seed, layer="q", link=0, rank=4, features=16)] += 1
    assert float((counts - 500).abs().max()) < 5 * math.sqrt(2000 * 0.25 * 0.75)


def test_the_laws_of_a_random_factor():
    """kaiming: uniform on +-1/sqrt(m). normal: 0.02. orthonormal: A A^T = I to 1e-5. 64 x 1024 numbers, 2 %."""
    draw = {
        law: random_factor(law, **ONE, link=0, rank=64, features=1024) for law in ("kaiming", "normal", "orthonormal")
    }
    assert all(a.dtype == torch.float32 and a.shape == (64, 1024) and a.is_contiguous() for a in draw.values())
    assert float(draw["kaiming"].abs().max()) <= 1 / 32
    assert float(draw["kaiming"].std()) == pytest.approx(1 / 32 / math.sqrt(3), rel=0.02)
    assert float(draw["normal"].std()) == pytest.approx(0.02, rel=0.02)
    assert abs(float(draw["normal"].mean())) < 5 * 0.02 / 256
    torch.testing.assert_close(draw["orthonormal"] @ draw["orthonormal"].T, torch.eye(64), rtol=0, atol=1e-5)


def test_an_orthonormal_factor_favours_no_sign():
    """Haar: the first entry is positive for half of 400 seeds, within 5 standard deviations (10)."""
    found = [random_factor("orthonormal", seed=i, layer="q", link=0, rank=2, features=6)[0, 0] > 0 for i in range(400)]
    assert abs(sum(map(int, found)) - 200) < 50


def test_the_selector_is_a_gather():
    x, columns = torch.arange(12.0).reshape(2, 6), torch.tensor([4, 0, 5])
    assert torch.equal(x @ one_hot(columns, 6).T, x[:, columns])


@pytest.mark.parametrize("where", ["double", "device"])
def test_the_defaults_of_torch_change_nothing(where):
    """`set_default_dtype(float64)`, `set_default_device("cuda")` (here: "meta") in somebody's script."""
    expected = random_factor("kaiming", **ONE, link=0, rank=2, features=6)
    columns = columns_of_link(CATALOG["r-cla"], **ONE, link=0, rank=2, features=6)
    try:
        if where == "double":
            torch.set_default_dtype(torch.float64)
        else:
            torch.set_default_device("meta")
        found = random_factor("kaiming", **ONE, link=0, rank=2, features=6)
        again = columns_of_link(CATALOG["r-cla"], **ONE, link=0, rank=2, features=6)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert found.device == again.device == torch.device("cpu")
    assert torch.equal(found, expected) and torch.equal(again, columns)
