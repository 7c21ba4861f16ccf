r"""How much a method can memorize: the information-theoretic bound (arXiv 2606.13767, Theorem 7).

    |E[gap]| <= sqrt(2 sigma^2 I(S; W) / N) <= sqrt(2 sigma^2 q p ln 2 / N)

Lemma 1: the first step is Xu & Raginsky (2017) for a sigma-sub-Gaussian loss; in the second, p parameters of q bits
hold at most q p ln 2 nats. Frozen random factors and sampled columns do not depend on the sample S and hold nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tunewise.catalog import Method, get_method
from tunewise.errors import SpecError
from tunewise.theory._inputs import count, layer_shapes, number, positive
from tunewise.theory.bound import Bound


def trained_parameters(
    method: str | Method, layers: Iterable[Sequence[int]], rank: int, links: int | None = None
) -> Bound:
    """The number p of trained parameters of the adapted layers, summed over a chain's k links.

    | trained | one layer of n outputs, m inputs |
    | --- | --- |
    | A and B (lora, lora+, cola) | k r (m + n) |
    | B or columns (asym, rac, cla, c3la, paca, ...) | k r n |
    | rows (cla-rows) | k r m |
    | all (fft) | m n |

    The share of a layer is at most m n: no update of an n x m weight holds more. The task head is not counted. A frozen
    A from the gradient depends on the sample and counts as trained.

    Args:
        method: A name of the catalog, or a `Method`.
        layers: Pairs (out n, in m), one for each adapted weight.
        rank: r.
        links: k; by default the method's own number (1 without a chain).

    Example:
        >>> vit_base = [(768, 768)] * 24  # q and v of 12 blocks
        >>> int(trained_parameters("lora", vit_base, 16)), int(trained_parameters("cla", vit_base, 16))
        (589824, 294912)
        >>> int(trained_parameters("c3la", vit_base, 16, links=48)) == 24 * 768 * 768
        True
    """
    method = get_method(method)
    shapes = layer_shapes(layers)
    rank, links = count("rank", rank), _links(method, links)
    total = sum(min(links * _one_link(method, n, m, rank), m * n) for n, m in shapes)
    return Bound(
        value=total,
        units="parameters",
        assumptions=("the task head is not counted", "each layer's share is at most m n"),
        mark="text",
        source="arXiv 2606.13767 Table 1",
        statement="p, trained parameters of the adapted layers over all links",
    )


def information_bound(parameters: Bound | int, samples: int, bits: float = 32, sigma: float = 1.0) -> Bound:
    """The bound |E[gap]| <= sqrt(2 sigma^2 q p ln 2 / N) on the expected gap.

    Vacuous in practice: for a loss in [0, M] sigma is M / 2, and a bound above M = 2 sigma says nothing.

    Args:
        parameters: p, e.g. from `trained_parameters`.
        samples: N, the number of fine-tuning samples.
        bits: q, bits per parameter.
        sigma: The loss is sigma-sub-Gaussian; in units of the loss.

    Example:
        >>> p = trained_parameters("cla", [(768, 768)] * 24, 16)
        >>> gap = information_bound(p, samples=50_000)
        >>> round(float(gap), 1), gap.vacuous
        (16.2, True)
    """
    p = count("parameters", parameters.value if isinstance(parameters, Bound) else parameters, least=0)
    n, q, sigma = count("samples", samples), number("bits", bits), positive("sigma", sigma)
    return Bound(
        value=sigma * math.sqrt(2 * q * p * math.log(2) / n),
        units="loss",
        assumptions=(
            "samples independent, of one law",
            "the loss is sigma-sub-Gaussian under that law (sigma = M / 2 for a loss in [0, M])",
            "what depends on the sample is the p parameters of q bits alone",
            "the expected gap over samples, not this run's",
        ),
        mark="text",
        source="arXiv 2606.13767 Theorem 7",
        statement="|E[gap]| <= value",
        ceiling=2 * sigma,
    )


def _links(method: Method, links: int | None) -> int:
    if links is not None:
        links = count("links", links)
        if links > 1 and method.chain is None:
            raise SpecError(f"{method.name!r} has no chain, so links is 1, not {links}; use a chain method")
        return links
    if method.chain is None:
        return 1
    if method.chain.links is None:
        raise SpecError(f"the number of links of {method.name!r} depends on the run's length; give links=k")
    return method.chain.links


def _one_link(method: Method, n: int, m: int, rank: int) -> int:
    match method.trained:
        case "all":
            return m * n
        case "head":
            return 0
        case "A":
            return rank * m
        case "AB":
            return rank * (m + n)
        case "B" | "columns":
            return rank * (m + n) if method.where == "gradient" else rank * n
        case "peft":
            raise SpecError(
                f"{method.name!r} is PEFT's own and stands in no table; count the trained parameters of the "
                "attached model, and give their number where a bound asks for it"
            )
