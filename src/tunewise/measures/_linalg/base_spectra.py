"""Singular value decompositions of the base model's weights, cached on disk by content.

All methods and seeds on one base model share them, and they are the expensive part of counting intruders. Left vectors
and values are enough: a right vector is W^T u / s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tunewise.measures._linalg.spectral_norm import content_of
from tunewise.measures._tensor_cache import read_tensors, save_tensors

FOLDER = "base-spectra"
DOUBLE_UP_TO = 2**22
"""Entries of U above which fp32 is used and kept (2048 x 2048 is the last in fp64): a gigabyte or more in fp64 for
every layer of a large model buys digits that no count depends on."""


@dataclass(frozen=True)
class BaseSpectrum:
    """Thin W0 = U diag(values) V^T: `u` (n, k), `values` (k,) in descending order, k = min(n, m)."""

    u: Tensor
    values: Tensor

    def right(self, base: Tensor, count: int) -> Tensor:
        """The first `count` columns of V (m, count), fp64; for the top of the spectrum, as it divides by the values."""
        return (base.double().T @ self.u[:, :count].double()) / self.values[:count].double()


class BaseSpectra:
    """Decompositions by content, cached in a folder; without a folder they are computed each time."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.computed = 0
        """How many were computed and not read."""

    def of(self, base: Tensor) -> BaseSpectrum:
        """The decomposition of W0 (n, m)."""
        file = None if self.folder is None else self.folder / f"{content_of(base)}.safetensors"
        known = None if file is None else _read(file, base)
        if known is not None:
            return known
        precise = base.shape[0] * min(base.shape) <= DOUBLE_UP_TO
        u, values, _ = torch.linalg.svd(base.double() if precise else base.float(), full_matrices=False)
        self.computed += 1
        found = BaseSpectrum(u.contiguous(), values)
        if file is not None:
            save_tensors(file, {"u": found.u, "values": found.values})
        return found


def _read(file: Path, base: Tensor) -> BaseSpectrum | None:
    tensors, side = read_tensors(file) or {}, min(base.shape)
    if tensors.keys() != {"u", "values"}:
        return None
    u, values = tensors["u"], tensors["values"]
    if tuple(u.shape) != (base.shape[0], side) or tuple(values.shape) != (side,):
        return None
    return BaseSpectrum(u.to(base.device), values.to(base.device))
