r"""Theorem 1 of arXiv 2606.13767 term by term: the sums over 2^L products, corrected or as printed.

    Phi_dW = 2 Ll [C prod_l lam_l sum_{i=1}^{2^L - 1} prod_j P(i,j) + sum_{i=1, i != 2^a - 1}^{2^L - 2} F(i)]
    Phi_W0 = 2 Ll [C prod_l lam_l sum_{i=2}^{2^L}     prod_j P(i,j) + sum_{i=3, i != 2^a}^{2^L - 1} F(i)]
    F(i)   = ||sigma_{L-psi(i)}(0)|| prod_{j=1}^{psi(i)} lam_{L-j+1} H(i,j),   psi(i) = floor(log2 i)
    P(i,j) = ||W0^{L-j+1}|| if floor((i-1) / 2^{L-j}) is odd, else ||dW^{L-j+1}||
    H(i,j) = ||W0^{L-j+1}|| if floor(i / 2^{psi(i)-j}) is odd, else ||dW^{L-j+1}||

The digits of i choose W0 or dW for each layer; the same choice for all layers is left out. The paper prints P with the
exponent L-1, H with its cases exchanged, and Phi_W0's second sum from i = 1; as printed the theorem is false. This is
the reference for `tunewise.theory.perturbation`, which computes the corrected sums in O(L).
"""

from __future__ import annotations

import math

from tunewise.errors import SpecError
from tunewise.theory._inputs import PerLayer, number, per_layer
from tunewise.theory.bound import Bound
from tunewise.theory.perturbation import ASSUMPTIONS, Perturbation

MAX_LAYERS = 16  # 2^16 terms take seconds


def literal_perturbation(
    base_norms: PerLayer,
    update_norms: PerLayer,
    input_bound: float,
    loss_lipschitz: float = 1.0,
    activation_lipschitz: PerLayer = 1.0,
    activation_offsets: PerLayer = 0.0,
    as_printed: bool = False,
) -> Perturbation:
    """Theorem 1 as sums of 2^L products, for at most 16 layers.

    Args:
        base_norms, update_norms, input_bound, loss_lipschitz, activation_lipschitz, activation_offsets: As in
            `perturbation`.
        as_printed: With the paper's misprints, with which the statement is false.

    Example:
        >>> float(literal_perturbation([3.0, 2.0], [0.5, 0.25], input_bound=1.0).phi_dw)
        3.75
    """
    a, b, lam, s = per_layer(
        base_norms=base_norms,
        update_norms=update_norms,
        activation_lipschitz=activation_lipschitz,
        activation_offsets=activation_offsets,
    )
    layers = len(a)
    if layers > MAX_LAYERS:
        raise SpecError(f"2^{layers} terms are too many; use perturbation() above {MAX_LAYERS} layers")
    twice_ll, c = 2 * number("loss_lipschitz", loss_lipschitz), number("input_bound", input_bound)

    def product(i: int) -> float:
        """prod_j P(i,j)."""
        exponents = [layers - 1 if as_printed else layers - j for j in range(1, layers + 1)]
        return math.prod((a if ((i - 1) >> e) % 2 else b)[layers - j] for j, e in enumerate(exponents, start=1))

    def offset(i: int) -> float:
        """F(i); layer l is at index l - 1."""
        psi = i.bit_length() - 1
        odd, even = (b, a) if as_printed else (a, b)
        path = ((odd if (i >> (psi - j)) % 2 else even)[layers - j] * lam[layers - j] for j in range(1, psi + 1))
        return s[layers - psi - 1] * math.prod(path)

    powers = {2**exponent for exponent in range(1, layers + 1)}
    front = c * math.prod(lam)
    dw_offsets = [offset(i) for i in range(1, 2**layers - 1) if i + 1 not in powers]
    w0_offsets = [offset(i) for i in range(1 if as_printed else 3, 2**layers) if i not in powers]
    phi_dw = math.fsum([*(front * product(i) for i in range(1, 2**layers)), *dw_offsets])
    phi_w0 = math.fsum([*(front * product(i) for i in range(2, 2**layers + 1)), *w0_offsets])
    return Perturbation(
        phi_dw=_bound(twice_ll * phi_dw, "|gap(W0 + dW) - gap(W0)| <= value", as_printed),
        phi_w0=_bound(twice_ll * phi_w0, "|gap(W0 + dW) - gap(dW)| <= value", as_printed),
    )


def _bound(phi: float, statement: str, as_printed: bool) -> Bound:
    bound = Bound(
        value=phi,
        units="loss",
        assumptions=ASSUMPTIONS,
        mark="text" if as_printed else "fixed",
        source="arXiv 2606.13767 Theorem 1",
        statement=statement,
    )
    return bound.with_unmet("as printed the statement is false") if as_printed else bound
