r"""How far the output of one attention block moves under fine-tuning (arXiv 2606.13767, Theorem 4, corrected).

V_W(X) = softmax(X WQ (X WK)^T / sqrt(d_k)) X WV WO for X of nhat rows, ||X||_2 <= C. Then

    ||V_{W0+dW}(X) - V_{W0}(X)||_F
        <= C (L_sigma ||dW_QKV||_F ||WO0||_2 + sqrt(nhat) ||WV0 + dWV||_2 ||dWO||_F)
    L_sigma = sqrt(Vb^2 (Qb^2 + Kb^2) / (4 d_k) + nhat),   Qb = C (||WQ0||_2 + ||dWQ||_2), Kb and Vb alike,

with dW_QKV = [dWQ | dWK | dWV]. The paper prints L_sigma = 1/2, which one token refutes: the softmax of one score is 1,
so X = WO0 = dWV = 1 moves the output by 1. The updates' norms must be Frobenius norms, since all nhat rows of a softmax
can move at once.

Proof. Write S = Q K^T / sqrt(d_k) and P = softmax(S) by rows; the Jacobian diag(p) - p p^T of a row has norm at most
1/2. On the segment from W0 to W0 + dW

    ||d(P V)||_F <= 1/2 ||dS||_F ||V||_2 + ||P||_2 ||dV||_F
                 <= Vb (Kb ||dQ||_F + Qb ||dK||_F) / (2 sqrt(d_k)) + sqrt(nhat) ||dV||_F

and Cauchy-Schwarz makes that L_sigma ||[dQ | dK | dV]||_F <= L_sigma C ||dW_QKV||_F. The second term is P V of W0 + dW
times dWO, with ||P||_2 <= sqrt(nhat). A mask changes nothing: the rows of P remain probabilities.

H heads: the squares of the first term add up over heads, each with its own d_k; [P_1 V_1 | ... | P_H V_H] has norm at
most sqrt(H nhat) C ||WV||_2, so nhat in the second term becomes H nhat.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from tunewise.errors import SpecError
from tunewise.theory._inputs import count, number
from tunewise.theory._wide import decimals, value_and_log, wide
from tunewise.theory.bound import Bound


def attention_difference(
    base_norms: Sequence[float],
    update_norms: Sequence[float],
    input_bound: float,
    tokens: int,
    head_width: int,
    heads: int = 1,
    spectral_update_norms: Sequence[float] | None = None,
    merged_value_norm: float | None = None,
    as_printed: bool = False,
) -> Bound:
    """A bound on ||V_{W0+dW}(X) - V_{W0}(X)||_F for one attention block on one input, with the local constant.

    Args:
        base_norms: ||WQ0||_2, ||WK0||_2, ||WV0||_2, ||WO0||_2.
        update_norms: ||dWQ||_F, ||dWK||_F, ||dWV||_F, ||dWO||_F.
        input_bound: C >= ||X||_2.
        tokens: nhat, the rows of X.
        head_width: d_k of one head.
        heads: H.
        spectral_update_norms: ||dWQ||_2, ... where known: they replace the Frobenius norms in L_sigma.
        merged_value_norm: ||WV0 + dWV||_2 where known, instead of the sum of norms.
        as_printed: With the paper's L_sigma = 1/2, with which the statement is false.

    Example:
        >>> float(attention_difference((1, 1, 1, 1), (0, 0, 0, 0), input_bound=1, tokens=4, head_width=8))
        0.0
        >>> float(attention_difference((0, 0, 1, 1), (0, 0, 1, 0), input_bound=1, tokens=1, head_width=8))
        1.0
    """
    nhat, d_k, heads = count("tokens", tokens), count("head_width", head_width), count("heads", heads)
    base, update = _four("base_norms", base_norms), _four("update_norms", update_norms)
    spectral = update if spectral_update_norms is None else _four("spectral_update_norms", spectral_update_norms)
    with wide():
        c = Decimal(number("input_bound", input_bound))
        wq, wk, wv, _ = (w + min(two, frobenius) for w, two, frobenius in zip(base, spectral, update))
        *d_qkv, d_o = update
        qb, kb, vb = c * wq, c * wk, c * wv
        constant = Decimal("0.5") if as_printed else (vb**2 * (qb**2 + kb**2) / (4 * d_k) + nhat).sqrt()
        if merged_value_norm is not None:
            wv = min(wv, Decimal(number("merged_value_norm", merged_value_norm)))
        through_softmax = constant * sum((norm**2 for norm in d_qkv), Decimal(0)).sqrt() * base[3]
        through_output = Decimal(heads * nhat).sqrt() * wv * d_o
        value = c * (through_softmax + through_output)
    bound = Bound(
        **value_and_log(value),
        units="Frobenius norm of the block's output",
        assumptions=(
            "one attention block on one input, not a stack: no residual, no normalisation",
            "||X||_2 at most the input bound",
            "no biases in the projections",
        ),
        mark="text" if as_printed else "fixed",
        source="arXiv 2606.13767 Theorem 4",
        statement="||V_{W0+dW}(X) - V_{W0}(X)||_F <= value",
    )
    return bound.with_unmet("as printed (L_sigma = 1/2) the statement is false") if as_printed else bound


def _four(name: str, norms: Sequence[float]) -> list[Decimal]:
    try:
        query, key, value, output = norms
    except (TypeError, ValueError) as error:
        raise SpecError(f"{name} needs four norms: query, key, value, output") from error
    return decimals(number(f"{name}[{i}]", norm) for i, norm in enumerate((query, key, value, output)))
