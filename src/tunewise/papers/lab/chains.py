"""The columns that chains select with the package's code, and how many the formulas predict.

k links of r columns out of m. Source: arXiv 2606.13767, Proposition 1 and Algorithm 3; the other two formulas are
elementary.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tunewise.catalog import Method
from tunewise.methods.draws import columns_of_link

RANK, FEATURES, OUTPUTS = 4, 48, 32
LINKS = FEATURES // RANK


def touched(links: int, rank: int, features: int) -> int:
    """Columns touched by a chain that takes columns in order, or by runs of a permutation."""
    return min(features, links * rank)


def touched_afresh(links: int, rank: int, features: int) -> float:
    """Expected number for links that draw r distinct columns independently: m (1 - (1 - r / m)^k)."""
    return features * (1 - (1 - rank / features) ** links)


def left_over(links: int, rank: int, features: int) -> float:
    """Expected share of ||D||^2 outside k r distinct columns, or outside k random row spaces of rank r."""
    return 1 - touched(links, rank, features) / features


def selected(method: Method, seed: int, links: int, rank: int, features: int, layer: str = "layer") -> list[Tensor]:
    """The columns of each link, from the code that attached methods use."""
    return [columns_of_link(method, seed=seed, layer=layer, link=k, rank=rank, features=features) for k in range(links)]


def distinct(columns: Sequence[Tensor]) -> list[int]:
    """The number of columns that the first 1, 2, ... links touch."""
    seen: set[int] = set()
    counts = []
    for link in columns:
        seen.update(link.tolist())
        counts.append(len(seen))
    return counts
