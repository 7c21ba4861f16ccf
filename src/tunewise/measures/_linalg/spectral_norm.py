r"""The largest singular value of a dense matrix, with a proof that none is larger, and kept on disk.

Lanczos' method on the smaller Gram matrix G (fp64) finds a unit vector v, so that ||G v|| is about the largest
eigenvalue and sqrt(v^T G v) = ||W^T v|| a value from below. The certificate is a Cholesky factorisation: where that
of t I - G goes through, no eigenvalue of G is above

    t + gamma_{k+1} k t + gamma_m ||W||_F^2,     gamma_j = j u / (1 - j u),  u = 2^-53

for W of k x m, k <= m (Higham, Accuracy and Stability, Theorem 10.3 for the factorisation, section 3.5 for G). With t a
hair above the value from below, both ends agree to the tolerance. Power iteration alone has no such proof: it can sit
on the second singular value.

Time: one Gram matrix and one factorisation, k^2 m / 2 + k^3 / 3 multiplications (k^2 m on a GPU); a second for 2048 x
8192 on one core.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from tunewise.errors import ModelError
from tunewise.store.files import write_atomically

TOLERANCE = 1e-6
"""Relative: the norm is at least `value` and at most `upper`, which is about (1 + TOLERANCE) x `value`."""
_UNIT = 2.0**-53


@dataclass(frozen=True)
class SpectralNorm:
    """||W||_2 lies between `value` and `upper`; the theorems are given `upper`."""

    value: float
    upper: float
    steps: int
    """Lanczos steps that it took."""


@torch.no_grad()
def spectral_norm(weight: Tensor, tolerance: float = TOLERANCE) -> SpectralNorm:
    """||weight||_2 within `tolerance`, deterministic. Raises `ModelError` for anything but a plain finite matrix."""
    w = _plain(weight).to(torch.float64)
    size = float(w.abs().max()) if w.numel() else 0.0
    if not math.isfinite(size):
        raise ModelError("the weight holds NaN or infinity, so it has no norm")
    if size == 0.0:
        return SpectralNorm(0.0, 0.0, 0)
    w = w / size  # so that no square over- or underflows
    if w.shape[0] > w.shape[1]:
        w = w.T
    k, m = w.shape
    gram = _gram(w)
    frobenius_squared = float(gram.diagonal().sum())
    steps = 32
    while True:
        steps = min(2 * steps, k)
        eigenvalue, done = _lanczos(gram, steps, tolerance)
        below = eigenvalue * (1 - _gamma(m)) - _gamma(m) * frobenius_squared
        t = eigenvalue * (1 + tolerance) ** 2
        if _all_below(gram, t):
            upper = t * (1 + k * _gamma(k + 1)) + _gamma(m) * frobenius_squared
            return SpectralNorm(size * math.sqrt(max(below, 0.0)), size * math.sqrt(upper), done)
        if steps == k:  # a start without any part in the top space; practically never
            top = float(torch.linalg.eigvalsh(gram)[-1])
            slack = (k * _gamma(k + 1) * top) + _gamma(m) * frobenius_squared
            return SpectralNorm(size * math.sqrt(max(top - slack, 0.0)), size * math.sqrt(top + slack), k)


def cached_spectral_norm(weight: Tensor, cache: Path | None, tolerance: float = TOLERANCE) -> SpectralNorm:
    """The same, read from the folder `cache` where this very matrix (by its content) was there before."""
    if cache is None:
        return spectral_norm(weight, tolerance)
    file = cache / f"{content_of(weight)}.json"
    kind = TypeAdapter(dict[str, float | int])
    try:
        known = kind.validate_json(file.read_bytes())
        if known["tolerance"] <= tolerance:
            return SpectralNorm(float(known["value"]), float(known["upper"]), int(known["steps"]))
    except (OSError, ValidationError, KeyError):
        pass
    found = spectral_norm(weight, tolerance)
    content = {"tolerance": tolerance, **asdict(found)}
    write_atomically(file, kind.dump_json(content, indent=1).decode() + "\n")
    return found


def content_of(weight: Tensor) -> str:
    """A hash of a matrix's shape, precision and values (16 hex digits)."""
    values = _plain(weight).contiguous().cpu()
    digest = hashlib.sha256(f"{tuple(values.shape)} {values.dtype}".encode())
    digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _gram(w: Tensor) -> Tensor:
    """w w^T. numpy asks BLAS for a symmetric product, half the multiplications of torch's general one."""
    if w.device.type != "cpu":
        return w @ w.T
    plain = w.numpy()
    return torch.from_numpy(plain @ plain.T)


def _lanczos(gram: Tensor, steps: int, tolerance: float) -> tuple[float, int]:
    """A Rayleigh quotient of `gram` near its largest eigenvalue, and the number of steps."""
    k = len(gram)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(k, dtype=torch.float64, generator=generator).to(gram.device)
    basis = gram.new_zeros(steps, k)
    alphas: list[float] = []
    betas: list[float] = []
    v = v / v.norm()
    for j in range(steps):
        basis[j] = v
        w = gram @ v
        alphas.append(float(v @ w))
        for _ in range(2):
            w = w - basis[: j + 1].T @ (basis[: j + 1] @ w)
        beta = float(w.norm())
        small = torch.diag(torch.tensor(alphas, dtype=torch.float64))
        if betas:
            off = torch.tensor(betas, dtype=torch.float64)
            small = small + torch.diag(off, 1) + torch.diag(off, -1)
        last = j + 1 == steps or beta <= 1e-14 * alphas[0]
        if last or j % 8 == 7:
            values, vectors = torch.linalg.eigh(small)
            # The quotient is nearer than the residual: by its square over the gap, so half the digits are enough.
            residual = beta * abs(float(vectors[-1, -1]))
            if last or residual <= 1e-2 * math.sqrt(tolerance) * float(values[-1]):
                ritz = basis[: j + 1].T @ vectors[:, -1].to(basis.device)
                return float(ritz @ (gram @ ritz)) / float(ritz @ ritz), j + 1
        betas.append(beta)
        v = w / beta
    raise AssertionError("the last step returns")


def _all_below(gram: Tensor, bound: float) -> bool:
    """Whether `bound` I - gram has a Cholesky factorisation, so that no eigenvalue is above (to rounding)."""
    shifted = -gram
    shifted.diagonal().add_(bound)
    _, info = torch.linalg.cholesky_ex(shifted)
    return int(info) == 0


def _gamma(count: int) -> float:
    return count * _UNIT / (1 - count * _UNIT)


def _plain(weight: Tensor) -> Tensor:
    if weight.ndim != 2:
        raise ModelError(f"a spectral norm is of a matrix, and this tensor has {weight.ndim} dimensions")
    if weight.is_meta or not weight.is_floating_point() or type(weight.data) is not Tensor:
        raise ModelError("the weight has no plain values (quantized or without data); load the model unquantized")
    return weight.detach()
