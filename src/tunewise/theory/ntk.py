r"""Which rank is enough in the NTK regime, where the network is linear in its update (arXiv 2402.11867).

With N samples and K outputs the linearized problem min_dW L(dW) + lambda ||dW||_* contains K N numbers. It has a
minimizer of some rank r with r (r + 1) / 2 <= K N; and LoRA of a rank with r (r + 1) / 2 > K N has no spurious local
minimum, for dW = u v^T with the penalty lambda / 2 (||u||_F^2 + ||v||_F^2).

A later count (arXiv 2605.03724) uses the dimension of the rank-r matrices: r (m + n) - r^2 > C* K N with C* about 1.35,
and no threshold for binary cross-entropy. The two differ widely: 11 or 12 against 1 for few-shot RoBERTa.
"""

from __future__ import annotations

import math
from typing import Literal

from tunewise.errors import SpecError, suggest_nearest
from tunewise.theory._inputs import count, layer_shapes, number, probability
from tunewise.theory.bound import Bound

GAUSSIAN_CONSTANT = 1.35
"""C* of arXiv 2605.03724 (its abstract), "about", for Gaussian features and squared error."""

_LAZY = "lazy training: the network is its linearisation in the update (measure it before relying on it)"


def rank_for_existence(outputs: int, samples: int) -> Bound:
    """The largest r with r (r + 1) / 2 <= K N: some minimizer has no larger rank.

    Args:
        outputs: K, the numbers in the loss for one sample.
        samples: N.

    Example:
        >>> int(rank_for_existence(outputs=2, samples=32))
        10
    """
    return Bound(
        value=_triangular_root(count("outputs", outputs) * count("samples", samples)),
        units="rank",
        assumptions=(_LAZY, "convex loss with a nuclear-norm penalty"),
        mark="text",
        source="arXiv 2402.11867 abstract (i)",
        statement="a minimiser of rank at most value exists",
    )


def rank_without_spurious_minima(outputs: int, samples: int) -> Bound:
    """The smallest r with r (r + 1) / 2 > K N: from this rank on LoRA has no spurious local minimum.

    The condition is sufficient, not necessary: nothing needs to change at this rank.

    Args:
        outputs: K, the numbers in the loss for one sample.
        samples: N.

    Example:
        >>> int(rank_without_spurious_minima(outputs=2, samples=32))
        11
    """
    return Bound(
        value=_triangular_root(count("outputs", outputs) * count("samples", samples)) + 1,
        units="rank",
        assumptions=(
            _LAZY,
            "convex loss with weight decay on both factors, i.e. a nuclear-norm penalty",
            "for almost every small perturbation of the penalty",
            "sufficient, not necessary",
        ),
        mark="text",
        source="arXiv 2402.11867 abstract (ii)",
        statement="no spurious local minimum at ranks of at least value",
    )


def rank_for_generic_features(
    shape: tuple[int, int], outputs: int, samples: int, loss: Literal["squared", "binary_cross_entropy"] = "squared"
) -> Bound:
    """The smallest r with r (m + n) - r^2 > 1.35 K N, a weaker condition; 1 for binary cross-entropy.

    If no rank satisfies it, the result is min(m, n), for which u v^T is every matrix.

    Args:
        shape: (out n, in m) of the adapted weight.
        outputs: K, the numbers in the loss for one sample.
        samples: N.
        loss: "squared", or "binary_cross_entropy", which has no threshold.

    Example:
        >>> int(rank_for_generic_features((1024, 1024), outputs=2, samples=32))
        1
        >>> int(rank_for_generic_features((1024, 1024), outputs=2, samples=10_000))
        14
    """
    ((n, m),) = layer_shapes([shape])
    demand = GAUSSIAN_CONSTANT * count("outputs", outputs) * count("samples", samples)
    if loss not in ("squared", "binary_cross_entropy"):
        raise SpecError(f"unknown loss {loss!r}{suggest_nearest(str(loss), ('squared', 'binary_cross_entropy'))}")
    ranks = range(1, min(m, n) + 1)
    enough = (r for r in ranks if loss == "binary_cross_entropy" or r * (m + n) - r * r > demand)
    return Bound(
        value=next(enough, ranks[-1]),
        units="rank",
        assumptions=(
            _LAZY,
            "one adapted weight",
            "squared error with independent Gaussian features, C* = 1.35 approximately"
            if loss == "squared"
            else "binary cross-entropy: the Polyak-Lojasiewicz inequality holds",
            "full rank where the demand can't be met",
        ),
        mark="text",
        source="arXiv 2605.03724 abstract",
        statement="no spurious local minimum at ranks of at least value",
    )


def nuclear_penalty(
    outputs: int, samples: int, feature_bound: float, loss_lipschitz: float = 1.0, delta: float = 0.05
) -> Bound:
    """The penalty lambda = 2 tau of `excess_risk`, tau = sqrt(2 K / N) G R (2 + sqrt(ln(1 / eta))).

    Args:
        outputs: K, the numbers in the loss for one sample.
        samples: N.
        feature_bound: R >= ||gradient of one output in the adapted weights||_F, at W0, for every sample.
        loss_lipschitz: G, of the loss in the K outputs.
        delta: eta, the probability with which `excess_risk` fails.

    Example:
        >>> round(float(nuclear_penalty(outputs=1, samples=20_000, feature_bound=1.0)), 4)
        0.0746
    """
    tau = _tau(outputs, samples, feature_bound, loss_lipschitz, delta)
    return Bound(
        value=2 * tau,
        units="loss per unit of nuclear norm",
        assumptions=_RISK_ASSUMPTIONS,
        mark="derived",
        source="own proof, after arXiv 2402.11867 abstract (iii)",
        statement="lambda = value",
    )


def excess_risk(
    update_nuclear_norm: float,
    outputs: int,
    samples: int,
    feature_bound: float,
    loss_lipschitz: float = 1.0,
    delta: float = 0.05,
) -> Bound:
    """The bound 6 tau ||dW*||_* on the excess risk of the penalized minimizer over the best dW*.

    It holds with probability at least 1 - eta, for the penalty lambda = 2 tau of `nuclear_penalty`.

    Proof. Let D be the penalized minimizer of the sample. (1) For a fixed rho, over ||d - dW*||_* <= rho the difference
    of true and empirical loss(d) - loss(dW*) is at most tau rho: vector contraction gives 2 sqrt(2) G rho sqrt(K) R /
    sqrt(N) in the mean (||mean of signed features||_2 <= sqrt(K) R / sqrt(N)), bounded differences the rest. (2) If D
    were farther than rho from dW*, the point of the segment at distance rho would give, by convexity, 0 <= tau rho + 2
    tau (2 ||dW*||_* - rho), so rho <= 4 ||dW*||_*. (3) Within that, excess <= 4 tau ||dW*||_* + 2 tau ||dW*||_*.

    Args:
        update_nuclear_norm: ||dW*||_* of a minimizer of the true loss.
        outputs, samples, feature_bound, loss_lipschitz, delta: As in `nuclear_penalty`.

    Example:
        >>> round(float(excess_risk(2.0, outputs=1, samples=20_000, feature_bound=1.0)), 3)
        0.448
    """
    norm = number("update_nuclear_norm", update_nuclear_norm)
    return Bound(
        value=6 * _tau(outputs, samples, feature_bound, loss_lipschitz, delta) * norm,
        units="loss",
        assumptions=(*_RISK_ASSUMPTIONS, "trained to the minimum with the penalty lambda = 2 tau"),
        mark="derived",
        source="own proof, after arXiv 2402.11867 abstract (iii)",
        statement="risk(dW) - risk(dW*) <= value",
    )


_RISK_ASSUMPTIONS = (
    _LAZY,
    "samples independent, of one law",
    "loss convex and Lipschitz in the outputs; features at most feature_bound",
)


def _tau(outputs: int, samples: int, feature_bound: float, loss_lipschitz: float, delta: float) -> float:
    k, n = count("outputs", outputs), count("samples", samples)
    g, r = number("loss_lipschitz", loss_lipschitz), number("feature_bound", feature_bound)
    return math.sqrt(2 * k / n) * g * r * (2 + math.sqrt(-math.log(probability("delta", delta))))


def _triangular_root(total: int) -> int:
    """The largest r with r (r + 1) / 2 <= total."""
    return (math.isqrt(8 * total + 1) - 1) // 2
