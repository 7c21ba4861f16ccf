"""Which columns chains select, by the package's own code, and how many that should be.

r columns of m a link, k links. Source: arXiv 2606.13767, Proposition 1 and Algorithm 3; the other two laws are
elementary.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tunewise.catalog import Method
from tunewise.methods.row_space import columns_of_link

RANK, FEATURES, OUTPUTS = 4, 48, 32
LINKS = FEATURES // RANK
"""Links after which a chain that forgets nothing has touched every column."""


def touched(links: int, rank: int, features: int) -> int:
    """Columns touched by a chain that takes them one after another, or by runs of a permutation."""
    return min(features, links * rank)


def touched_afresh(links: int, rank: int, features: int) -> float:
    """Expected number where every link draws r distinct columns anew: m (1 - (1 - r / m)^k)."""
    return features * (1 - (1 - rank / features) ** links)


def touched_by_blocks(links: int, rank: int, features: int) -> float:
    """Expected number where every link is a contiguous block at a uniform offset of the m - r + 1."""
    offsets = features - rank + 1
    holding = [min(c, features - rank) - max(0, c - rank + 1) + 1 for c in range(features)]
    return sum(1 - (1 - count / offsets) ** links for count in holding)


def left_over(links: int, rank: int, features: int) -> float:
    """Expected share of ||D||^2 outside k r distinct columns, or outside k random row spaces of rank r."""
    return 1 - touched(links, rank, features) / features


def selected(method: Method, seed: int, links: int, rank: int, features: int, layer: str = "layer") -> list[Tensor]:
    """The columns of each link, from the code that attached methods use."""
    return [columns_of_link(method, seed=seed, layer=layer, link=k, rank=rank, features=features) for k in range(links)]


def distinct(columns: Sequence[Tensor]) -> list[int]:
    """How many columns the first 1, 2, ... links have touched."""
    seen: set[int] = set()
    counts = []
    for link in columns:
        seen.update(link.tolist())
        counts.append(len(seen))
    return counts
