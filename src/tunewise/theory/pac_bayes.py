r"""Gaps that hold with high probability: PAC-Bayes for fine-tuning, Hoeffding for an untrained network.

arXiv 2606.13767, Theorem 5 (after Li & Zhang, NeurIPS 2021), with probability at least 1 - 2 delta over N independent
samples:

    gap <= epsilon + C2 sqrt([36 / epsilon^2 C^2 V log(4 L V C2) S^2 sum_i Q_i^2 + 3 ln(N / delta) + 8] / N)
    S = sum_i prod_j (A_j + Q_j) / (A_i + Q_i)

||W0^i||_2 <= A_i, ||dW^i||_F <= Q_i, V the widest layer, loss in [0, C2]. The paper prints ln |N| delta^-1. Its Theorem
6 is the same with Q = 0, plus Phi_dW of Theorem 1.
"""

from __future__ import annotations

import math
from decimal import Decimal

from tunewise.errors import SpecError
from tunewise.theory._inputs import PerLayer, count, number, per_layer, positive, probability
from tunewise.theory._wide import decimals, value_and_log, wide
from tunewise.theory.bound import Bound


def pac_bayes(
    base_norms: PerLayer,
    update_norms: PerLayer,
    input_bound: float,
    width: int,
    samples: int,
    epsilon: float = 0.1,
    delta: float = 0.05,
    loss_range: float = 1.0,
) -> Bound:
    """A bound on test loss - train loss with high probability.

    A_i and C below 1 are raised to 1, as the theorem requires. With update_norms=0 it bounds the gap of W0 itself
    (epsilon may be 0 then); `hoeffding` is tighter.

    Args:
        base_norms: A_i >= ||W0^i||_2, one for each layer, or one number for all.
        update_norms: Q_i >= ||dW^i||_F.
        input_bound: C >= ||x||.
        width: V, of the widest layer.
        samples: N.
        epsilon: The margin, fixed before the sample is seen; in units of the loss.
        delta: The statement fails with probability at most 2 delta.
        loss_range: C2, for a loss in [0, C2].

    Example:
        >>> gap = pac_bayes([2.0] * 12, 0.1, input_bound=1.0, width=3072, samples=50_000)
        >>> gap.vacuous, round(gap.log_value, 3)
        (True, 13.524)
    """
    a, q = (decimals(values) for values in per_layer(base_norms=base_norms, update_norms=update_norms))
    c, v, n = max(number("input_bound", input_bound), 1.0), count("width", width), count("samples", samples)
    failure, c2 = probability("delta", delta), positive("loss_range", loss_range)
    moved = any(q)
    eps = positive("epsilon", epsilon) if moved else number("epsilon", epsilon)
    if 4 * len(a) * v * c2 <= 1:
        raise SpecError(f"loss_range {c2:g} is too small for the theorem; measure the loss in smaller units")
    with wide():
        complexity = Decimal(0)
        if moved:
            reach = [max(a_i, Decimal(1)) + q_i for a_i, q_i in zip(a, q)]
            slopes = math.prod(reach, start=Decimal(1)) * sum(1 / x for x in reach)
            complexity = 36 * (Decimal(c) * slopes / Decimal(eps)) ** 2 * v * Decimal(math.log(4 * len(a) * v * c2))
            complexity *= sum(q_i**2 for q_i in q)
        confidence = 3 * Decimal(n / failure).ln() + 8
        value = Decimal(eps) + Decimal(c2) * ((complexity + confidence) / n).sqrt()
    return Bound(
        **value_and_log(value),
        units="loss",
        assumptions=(
            f"with probability at least {1 - 2 * failure:g} over the samples, independent and of one law",
            "norm bounds and epsilon fixed before the samples are seen",
            "feed-forward, 1-Lipschitz activations that are 0 at 0",
            f"the loss is 1-Lipschitz and in [0, {c2:g}]",
            "norm bounds of W0 and of x raised to 1 where they are below",
        ),
        mark="text",
        source="arXiv 2606.13767 Theorem 5",
        statement="gap <= value",
        ceiling=c2,
    )


def hoeffding(samples: int, delta: float = 0.05, loss_range: float = 1.0) -> Bound:
    """The bound C2 sqrt(ln(1 / delta) / (2 N)) on the gap of a network that has not seen the samples, e.g. of W0.

    Args:
        samples: N.
        delta: The statement fails with probability at most delta.
        loss_range: C2, for a loss in [0, C2].

    Example:
        >>> round(float(hoeffding(samples=50_000)), 5)
        0.00547
    """
    n, failure = count("samples", samples), probability("delta", delta)
    c2 = positive("loss_range", loss_range)
    return Bound(
        value=c2 * math.sqrt(-math.log(failure) / (2 * n)),
        units="loss",
        assumptions=(
            f"with probability at least {1 - failure:g} over the samples, independent and of one law",
            "the network is fixed before the samples are seen",
            f"the loss is in [0, {c2:g}]",
        ),
        mark="text",
        source="Hoeffding 1963, Theorem 2",
        statement="gap <= value",
        ceiling=c2,
    )
