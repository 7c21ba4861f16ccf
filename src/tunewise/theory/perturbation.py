r"""How far fine-tuning can move the generalization gap (arXiv 2606.13767, Theorem 1, corrected).

A network h_l = sigma_l(W^l h_{l-1}), h_0 = x, with a_l = ||W0^l||_2, b_l = ||dW^l||_2, sigma_l lam_l-Lipschitz, s_l =
||sigma_l(0)||, ||x|| <= C, and an Ll-Lipschitz loss. Then

    gap(W0 + dW) <= min(gap(W0) + Phi_dW, gap(dW) + Phi_W0),        Phi = 2 Ll D_L

    H_0 = C,   H_l = lam_l (a_l + b_l) H_{l-1} + s_l             (H_l >= ||h_l|| of W0 + dW)
    D_0 = 0,   D_l = lam_l (other_l H_{l-1} + base_l D_{l-1})    (D_l >= the distance from the base network)

where Phi_dW has base = a, other = b, and Phi_W0 has base = b, other = a.

Proof. ||sigma(W h) - sigma(V g)|| <= lam ||(W - V) h + V (h - g)|| gives D; the loss moves by at most Ll D_L, and so do
its means over the sample and over the distribution. This is O(L) instead of the paper's 2^L terms
(`tunewise.theory.literal`).

Bounds can be added: `phi_w0 + information_bound(...)` is the paper's total, `phi_dw + hoeffding(...)` its Theorem 6
with a tighter term.
"""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

from tunewise.theory._inputs import PerLayer, number, per_layer
from tunewise.theory._wide import decimals, value_and_log, wide
from tunewise.theory.bound import Bound

ASSUMPTIONS = (
    "feed-forward: each layer an activation of W h; no residual, normalisation or attention",
    "||x|| at most the input bound, for every sample",
    "the loss is Lipschitz in the output",
)


class Perturbation(NamedTuple):
    """How far the gap of W0 + dW can be from that of W0 (`phi_dw`) and from that of dW alone (`phi_w0`).

    Example:
        >>> float(perturbation(1.0, update_norms=0.0, input_bound=1.0).phi_dw)
        0.0
    """

    phi_dw: Bound
    phi_w0: Bound


def perturbation(
    base_norms: PerLayer,
    update_norms: PerLayer,
    input_bound: float,
    loss_lipschitz: float = 1.0,
    activation_lipschitz: PerLayer = 1.0,
    activation_offsets: PerLayer = 0.0,
    merged_norms: PerLayer | None = None,
) -> Perturbation:
    """How far fine-tuning by dW can move the gap: Phi_dW and Phi_W0 of Theorem 1, corrected.

    The defaults are Corollary 1: linear layers. A frozen bias c is part of the activation z -> sigma(z + c), whose
    offset is ||sigma(c)||. An argument for each layer takes one number for all layers, or a sequence.

    Args:
        base_norms: a_l = ||W0^l||_2, first layer first.
        update_norms: b_l = ||dW^l||_2, with the scale alpha / r, a chain's links summed.
        input_bound: C >= ||x||.
        loss_lipschitz: Ll, of the loss as a function of the network's output.
        activation_lipschitz: lam_l: 1 for ReLU, tanh, softplus; 1/4 for sigmoid.
        activation_offsets: s_l = ||sigma_l(0)||, of the vector: sqrt(n_l) |sigma(0)| if elementwise.
        merged_norms: ||W0^l + dW^l||_2, which replaces a_l + b_l in H where it is smaller: a sharper bound.

    Example:
        >>> phi_dw, phi_w0 = perturbation([3.0, 2.0], [0.5, 0.25], input_bound=1.0)
        >>> float(phi_dw), float(phi_w0)  # the first is 2 (a2 b1 + b2 a1 + b2 b1)
        (3.75, 15.5)
        >>> deep = perturbation([30.0] * 400, 0.1, input_bound=1.0).phi_dw
        >>> float(deep), round(deep.log_value, 3)
        (inf, 1362.196)
    """
    named: dict[str, PerLayer] = {
        "base_norms": base_norms,
        "update_norms": update_norms,
        "activation_lipschitz": activation_lipschitz,
        "activation_offsets": activation_offsets,
    }
    if merged_norms is not None:
        named["merged_norms"] = merged_norms
    with wide():
        a, b, lam, s, *merged = (decimals(values) for values in per_layer(**named))
        twice_ll = 2 * Decimal(number("loss_lipschitz", loss_lipschitz))

        total = [a_l + b_l for a_l, b_l in zip(a, b)]
        if merged:
            total = [min(*norms) for norms in zip(total, merged[0])]
        hidden = [Decimal(number("input_bound", input_bound))]
        for w_l, lam_l, s_l in zip(total, lam, s):
            hidden.append(lam_l * w_l * hidden[-1] + s_l)

        phi_dw = twice_ll * _distance(hidden, lam, base=a, other=b)
        phi_w0 = twice_ll * _distance(hidden, lam, base=b, other=a)
    return Perturbation(
        phi_dw=_bound(phi_dw, "|gap(W0 + dW) - gap(W0)| <= value"),
        phi_w0=_bound(phi_w0, "|gap(W0 + dW) - gap(dW)| <= value"),
    )


def _distance(hidden: list[Decimal], lam: list[Decimal], base: list[Decimal], other: list[Decimal]) -> Decimal:
    """D_L: how far the outputs of the network base + other are from those of the network base."""
    distance = Decimal(0)
    for h, lam_l, base_l, other_l in zip(hidden, lam, base, other):
        distance = lam_l * (other_l * h + base_l * distance)
    return distance


def _bound(phi: Decimal, statement: str) -> Bound:
    return Bound(
        **value_and_log(phi),
        units="loss",
        assumptions=ASSUMPTIONS,
        mark="fixed",
        source="arXiv 2606.13767 Theorem 1",
        statement=statement,
    )
