r"""LoRA with a random frozen factor: the gap of one run, of order sqrt(r) / sqrt(N) (arXiv 2506.14530).

The constants of that paper are not public here; this is a theorem of the same rate with its own. Network and updates:

    h_l = sigma_l((W_l + g B_l A_l) h_{l-1}),  g = alpha / r,  A_l iid N(0, sA^2), frozen,  ||B_l||_F <= beta

Upper bound, with probability at least 1 - dA - d:

    sup_B |gap| <= 2 / sqrt(N) + M sqrt((p ln(1 + 2 R Lam sqrt(N)) + ln(2 / d)) / (2 N))
    p    = r sum_l n_l,   R = beta sqrt(L)
    al_l = sA (sqrt(r) + sqrt(m_l) + sqrt(2 ln(L / dA)))
    w_l  = ||W_l||_2 + g beta al_l,   h_l = lam_l w_l h_{l-1} + s_l,   h_0 = C
    Lam  = Ll sqrt(sum_l (g al_l lam_l h_{l-1} prod_{k>l} lam_k w_k)^2)

Proof. All ||A_l||_2 <= al_l with probability at least 1 - dA (Gaussian matrices, a union over layers). Then the loss is
Lam-Lipschitz in B: change one layer at a time and use Cauchy-Schwarz. The set of B, convex and in a ball of radius R of
R^p, has an eps-net inside it of at most (1 + 2 R / eps)^p points. Hoeffding and a union over the net, with eps = 1 /
(Lam sqrt(N)), give the root; a B outside the net has a gap at most 2 Lam eps away.

Lower bound: on some problem E sup_B gap >= M / (2 sqrt(2 N)). Proof. Let two settings of B have the losses M (1 + y) /
2 and M (1 - y) / 2 for a fair sign y. The larger of their gaps is M / 2 |mean of N signs|, and E |mean| >= 1 / sqrt(2
N) (Khintchine; equality at N = 2).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import NamedTuple

from tunewise.errors import SpecError
from tunewise.theory._inputs import PerLayer, count, layer_shapes, number, per_layer, positive, probability
from tunewise.theory._wide import value_and_log, wide
from tunewise.theory.bound import Bound

SOURCE = "own proof, at the rate of arXiv 2506.14530 (abstract)"


class FactorGeometry(NamedTuple):
    """p (entries of all B), Lam (Lipschitz constant of the loss in all B) and R (radius of a ball that holds all B)."""

    parameters: int
    lipschitz: Bound
    radius: float


def factor_geometry(
    base_norms: PerLayer,
    layers: Iterable[Sequence[int]],
    rank: int,
    alpha: float,
    factor_std: PerLayer,
    update_radius: float,
    input_bound: float,
    loss_lipschitz: float = 1.0,
    activation_lipschitz: PerLayer = 1.0,
    activation_offsets: PerLayer = 0.0,
    factor_delta: float = 0.05,
) -> FactorGeometry:
    """p, Lam and R of the module's theorem; arguments as in `random_factor_upper`."""
    shapes = layer_shapes(layers)
    depth, r = len(shapes), count("rank", rank)
    norms, stds, lipschitz, offsets = per_layer(
        depth,
        base_norms=base_norms,
        factor_std=factor_std,
        activation_lipschitz=activation_lipschitz,
        activation_offsets=activation_offsets,
    )
    g, beta = positive("alpha", alpha) / r, number("update_radius", update_radius)
    tail = math.sqrt(2 * math.log(depth / probability("factor_delta", factor_delta)))
    with wide():
        hidden, slopes_squared = Decimal(number("input_bound", input_bound)), Decimal(0)
        for (_, m), norm, std, lam, offset in zip(shapes, norms, stds, lipschitz, offsets):
            factor = Decimal(std * (math.sqrt(r) + math.sqrt(m) + tail))  # al_l
            weight = Decimal(norm) + Decimal(g * beta) * factor  # w_l
            slope = Decimal(g) * factor * Decimal(lam) * hidden
            slopes_squared = slopes_squared * (Decimal(lam) * weight) ** 2 + slope**2
            hidden = Decimal(lam) * weight * hidden + Decimal(offset)
        lam_total = Decimal(number("loss_lipschitz", loss_lipschitz)) * slopes_squared.sqrt()
    return FactorGeometry(
        parameters=r * sum(n for n, _ in shapes),
        lipschitz=Bound(
            **value_and_log(lam_total),
            units="loss per unit of ||B||_F",
            mark="derived",
            source=SOURCE,
            statement="|loss(B) - loss(B')| <= value ||B - B'||_F",
        ),
        radius=beta * math.sqrt(depth),
    )


def random_factor_upper(
    base_norms: PerLayer,
    layers: Iterable[Sequence[int]],
    rank: int,
    alpha: float,
    factor_std: PerLayer,
    update_radius: float,
    input_bound: float,
    samples: int,
    loss_range: float = 1.0,
    loss_lipschitz: float = 1.0,
    activation_lipschitz: PerLayer = 1.0,
    activation_offsets: PerLayer = 0.0,
    delta: float = 0.05,
    factor_delta: float = 0.05,
) -> Bound:
    """The module's upper bound on sup |gap| over all B that one run can reach.

    Args:
        base_norms: ||W_l||_2, first layer first; here and below one number for all layers, or a sequence.
        layers: Pairs (out n, in m), first layer first.
        rank: r.
        alpha: LoRA's alpha; g = alpha / r.
        factor_std: sA, standard deviation of the Gaussian entries of A.
        update_radius: beta >= ||B_l||_F.
        input_bound: C >= ||x||.
        samples: N.
        loss_range: M, for a loss in [0, M].
        loss_lipschitz: Ll, of the loss as a function of the network's output.
        activation_lipschitz: lam_l.
        activation_offsets: s_l = ||sigma_l(0)||.
        delta: d, the probability of a sample for which it fails.
        factor_delta: dA, the probability of factors for which it fails.

    Example:
        >>> lora = {"layers": [(64, 64)] * 2, "rank": 4, "alpha": 8, "factor_std": 0.1}
        >>> gap = random_factor_upper(2.0, **lora, update_radius=1.0, input_bound=1.0, samples=10**6)
        >>> round(float(gap), 3)
        0.054
    """
    n, m_range, d = count("samples", samples), positive("loss_range", loss_range), probability("delta", delta)
    if d + probability("factor_delta", factor_delta) >= 1:
        raise SpecError(f"delta {d:g} and factor_delta {factor_delta:g} leave no probability; their sum must be < 1")
    adapter = (rank, alpha, factor_std, update_radius)
    activations = (activation_lipschitz, activation_offsets)
    p, lipschitz, radius = factor_geometry(
        base_norms, layers, *adapter, input_bound, loss_lipschitz, *activations, factor_delta
    )
    log_ratio = lipschitz.log_value + math.log(2 * radius * math.sqrt(n)) if radius else -math.inf
    log_net = p * _log1p_exp(log_ratio)
    return Bound(
        value=2 / math.sqrt(n) + m_range * math.sqrt((log_net + math.log(2 / d)) / (2 * n)),
        units="loss",
        assumptions=(
            f"with probability at least {1 - d - factor_delta:g} over the samples and the frozen factors",
            "A Gaussian, independent of the samples; A and W frozen",
            "||B_l||_F at most update_radius in every layer",
            "feed-forward: no residual, normalisation or attention; ||x|| at most the input bound",
            f"the loss is Lipschitz in the output and in [0, {m_range:g}]",
        ),
        mark="derived",
        source=SOURCE,
        statement="sup_B |gap| <= value",
        ceiling=m_range,
    )


def random_factor_lower(samples: int, loss_range: float = 1.0) -> Bound:
    """The bound M / (2 sqrt(2 N)): on some problem the expected largest gap is at least this, for every rank.

    Args:
        samples: N.
        loss_range: M, for a loss in [0, M].

    Example:
        >>> round(float(random_factor_lower(samples=2)), 6)
        0.25
    """
    n, m_range = count("samples", samples), positive("loss_range", loss_range)
    return Bound(
        value=m_range / (2 * math.sqrt(2 * n)),
        units="loss",
        assumptions=(
            "for the hardest problem, not for this one: labels a fair coin",
            "two settings of B within reach whose losses are opposite extremes on every sample",
        ),
        mark="derived",
        source=SOURCE,
        statement="E sup_B gap >= value",
    )


def _log1p_exp(x: float) -> float:
    """log(1 + e^x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
