"""The base model's decompositions are right, made once, and never trusted when damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tunewise.measures._linalg import base_spectra
from tunewise.measures._linalg.base_spectra import BaseSpectra


def weight(rows: int = 12, columns: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (10, 10)])
def test_rebuilds_the_weight(shape: tuple[int, int], tmp_path: Path) -> None:
    w = weight(*shape)
    spectra = BaseSpectra(tmp_path)
    for _ in range(2):  # as made, and as read
        found = spectra.of(w)
        side = min(shape)
        v = found.right(w, side)
        assert (found.u * found.values @ v.T - w).abs().max() < 1e-12
        assert (found.u.T @ found.u - torch.eye(side)).abs().max() < 1e-13
        assert (v.T @ v - torch.eye(side)).abs().max() < 1e-12
    assert spectra.computed == 1


def test_one_decomposition_a_weight_for_all_who_ask(tmp_path: Path) -> None:
    first = BaseSpectra(tmp_path)
    first.of(weight(seed=1))
    first.of(weight(seed=2))
    assert first.computed == 2
    others = [BaseSpectra(tmp_path) for _ in range(10)]
    for spectra in others:
        spectra.of(weight(seed=1).clone())
        spectra.of(weight(seed=2).T.contiguous().T)  # the same matrix, stored the other way round
    assert [spectra.computed for spectra in others] == [0] * 10
    assert len(list(tmp_path.iterdir())) == 2


def test_a_changed_bit_is_another_weight(tmp_path: Path) -> None:
    spectra = BaseSpectra(tmp_path)
    w = weight()
    spectra.of(w)
    w[3, 4] = torch.nextafter(w[3, 4], torch.tensor(9.0))
    spectra.of(w)
    assert spectra.computed == 2


@pytest.mark.parametrize("damage", ["cut short", "flipped", "of another shape", "empty"])
def test_a_damaged_file_is_made_again(damage: str, tmp_path: Path) -> None:
    w = weight()
    BaseSpectra(tmp_path).of(w)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "cut short":
        file.write_bytes(content[:-100])
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        BaseSpectra(tmp_path / "other").of(weight(7, 5))
        file.write_bytes(next((tmp_path / "other").iterdir()).read_bytes())
    spectra = BaseSpectra(tmp_path)
    found = spectra.of(w)
    assert spectra.computed == 1
    assert (found.u * found.values @ found.right(w, 9).T - w).abs().max() < 1e-12
    assert BaseSpectra(tmp_path).of(w).u.equal(found.u)


def test_a_folder_that_cant_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    spectra = BaseSpectra(tmp_path / "file" / "spectra")
    with pytest.warns(UserWarning, match="can't be cached"):
        found = spectra.of(weight())
    assert found.u.shape == (12, 9)


def test_large_weights_are_kept_in_single_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_spectra, "DOUBLE_UP_TO", 100)
    small, large = weight(10, 10), weight(12, 12)
    spectra = BaseSpectra(tmp_path)
    assert spectra.of(small).u.dtype == torch.float64
    assert spectra.of(large).u.dtype == torch.float32
    again = spectra.of(large)
    assert (again.u * again.values @ again.right(large, 12).float().T - large).abs().max() < 1e-5
