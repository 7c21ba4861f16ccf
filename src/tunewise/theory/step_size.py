r"""The largest learning rate at which a step on columns lowers the loss (arXiv 2606.13767, Theorems 2 and 3).

A step of SGD with rate gamma on B, dW = (alpha / r) B A0, moves W by -eta grad_W A0^T A0 with eta = gamma alpha^2 /
r^2. A0 selects columns (A0 A0^T = I), so A0^T A0 is a projection, and where grad_W is L_grad-Lipschitz

    loss(W') <= loss(W) - eta (1 - eta L_grad / 2) ||grad_W A0^T A0||_F^2

which is a decrease for 0 < gamma < 2 r^2 / (L_grad alpha^2). Each link of a chain satisfies it (Theorem 3).
"""

from __future__ import annotations

from tunewise.theory._inputs import count, number, positive
from tunewise.theory.bound import Bound

_ASSUMPTIONS = (
    "plain SGD on the full loss: no momentum, no Adam, no sampling noise",
    "A selects columns (cla, c3la and their sampled forms)",
    "the gradient in W is L_grad-Lipschitz between W and W'",
)


def largest_safe_step(rank: int, alpha: float, gradient_lipschitz: float) -> Bound:
    """The rate 2 r^2 / (L_grad alpha^2): any smaller learning rate of B lowers the loss unless the gradient is 0.

    Args:
        rank: r.
        alpha: LoRA's alpha; the scale is alpha / r.
        gradient_lipschitz: L_grad, of the loss's gradient in W (the largest curvature).

    Example:
        >>> float(largest_safe_step(rank=16, alpha=32, gradient_lipschitz=100.0))
        0.005
    """
    r, a = count("rank", rank), positive("alpha", alpha)
    return Bound(
        value=2 / positive("gradient_lipschitz", gradient_lipschitz) * (r / a) ** 2,
        units="learning rate of B",
        assumptions=_ASSUMPTIONS,
        mark="text",
        source="arXiv 2606.13767 Theorems 2 and 3",
        statement="0 < gamma < value lowers the loss",
    )


def guaranteed_decrease(step: float, rank: int, alpha: float, gradient_lipschitz: float, gradient_norm: float) -> Bound:
    """The decrease eta (1 - eta L_grad / 2) ||grad_W A0^T A0||_F^2 of the loss that a step guarantees.

    Negative for a step that is too long.

    Args:
        step: gamma, the learning rate of B.
        rank, alpha, gradient_lipschitz: As in `largest_safe_step`.
        gradient_norm: ||grad_W A0^T A0||_F, of the selected columns of the gradient.

    Example:
        >>> float(guaranteed_decrease(0.0025, rank=16, alpha=32, gradient_lipschitz=100.0, gradient_norm=1.0))
        0.005
    """
    eta = positive("step", step) * (positive("alpha", alpha) / count("rank", rank)) ** 2
    curvature = number("gradient_lipschitz", gradient_lipschitz)
    return Bound(
        value=eta * (1 - eta * curvature / 2) * number("gradient_norm", gradient_norm) ** 2,
        units="loss",
        assumptions=_ASSUMPTIONS,
        mark="text",
        source="arXiv 2606.13767 Theorems 2 and 3",
        statement="loss(W) - loss(W') >= value",
    )
