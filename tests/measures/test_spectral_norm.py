"""The certified norm against a dense fp64 singular value decomposition, on matrices that are easy and that are not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewise.errors import ModelError
from tunewise.measures._linalg.spectral_norm import TOLERANCE, cached_spectral_norm, spectral_norm


def exact(weight: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.double(), 2))


def check(weight: torch.Tensor) -> None:
    """The true norm (to 1e-12, what the reference itself is good to) lies between the ends, which agree."""
    found, true = spectral_norm(weight), exact(weight)
    assert found.value <= true * (1 + 1e-12)
    assert true <= found.upper * (1 + 1e-12)
    assert found.upper - found.value <= 3 * TOLERANCE * true


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6), st.sampled_from([1.0, 1e-150, 1e150, 1e-30]),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_the_norm_lies_between_the_two_ends(n: int, m: int, seed: int, size: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    if dtype != torch.float64:
        size = min(max(size, 1e-30), 1e30)
    check((torch.randn(n, m, generator=generator, dtype=torch.float64) * size).to(dtype))


@pytest.mark.parametrize("ratio", [1.0, 1 - 1e-9, 1 - 1e-5, 0.99, 0.0])
def test_a_second_value_close_to_the_first_does_not_hide_it(ratio: float) -> None:
    """The start is made orthogonal to the first singular vector: power iteration would stay on the second."""
    q, _ = torch.linalg.qr(torch.randn(60, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    values = torch.full((60,), 0.1, dtype=torch.float64)
    values[0], values[1] = 1.0, ratio
    start = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q[:, 0] -= start * (start @ q[:, 0]) / (start @ start)
    q, _ = torch.linalg.qr(q)
    check(q @ torch.diag(values) @ q.T)


def test_a_start_without_any_part_in_the_top_space_is_found_out() -> None:
    """Exactly orthogonal: Lanczos alone would answer 0.5, and the factorisation refuses that."""
    start = torch.randn(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    top = torch.tensor([-start[1], start[0], 0.0, 0.0], dtype=torch.float64)
    top /= top.norm()
    weight = 0.5 * torch.eye(4, dtype=torch.float64) + 0.5 * torch.outer(top, top)
    assert spectral_norm(weight).upper >= 1.0 - 1e-12
    check(weight)


def test_special_matrices() -> None:
    assert spectral_norm(torch.zeros(3, 5)).upper == 0.0
    assert spectral_norm(torch.eye(50)).value == pytest.approx(1.0, rel=1e-9)
    assert spectral_norm(torch.full((1, 1), -3.0)).upper == pytest.approx(3.0, rel=2e-6)
    outer = torch.outer(torch.arange(1.0, 200.0), torch.arange(1.0, 30.0)).double()
    assert spectral_norm(outer).value == pytest.approx(exact(outer), rel=1e-6)


def test_a_weight_of_a_pretrained_models_size() -> None:
    weight = torch.randn(384, 1536, generator=torch.Generator().manual_seed(3)) * 0.05
    check(weight)
    check(weight.T)


@pytest.mark.parametrize(
    "weight", [torch.randn(3), torch.tensor([[1.0, math.nan]]), torch.ones(2, 2).int(), torch.ones(2, 2, device="meta")]
)
def test_what_has_no_norm_is_refused(weight: torch.Tensor) -> None:
    with pytest.raises(ModelError):
        spectral_norm(weight)


def test_the_cache_answers_for_the_same_matrix_and_no_other(tmp_path: Path) -> None:
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    first = cached_spectral_norm(weight, tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 1
    assert cached_spectral_norm(weight.clone(), tmp_path) == first
    (tmp_path / next(tmp_path.glob("*.json")).name).write_text("half a fi")
    assert cached_spectral_norm(weight, tmp_path) == first
    weight[0, 0] += 1e-3
    other = cached_spectral_norm(weight, tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert other.value == pytest.approx(exact(weight), rel=1e-6)
    assert cached_spectral_norm(weight, tmp_path, tolerance=1e-9).upper <= other.upper
