"""Every random choice of a method. It depends on the seed and its own name (layer, link) alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from tunewise.catalog import LoraAInit, Method

Item = TypeVar("Item")


def stream(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator seeded by sha256 of the seed and the names: the same in every process and on every machine."""
    text = "\x1f".join([str(seed), *map(str, names)])
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator(device="cpu").manual_seed(number)


def sample(items: Sequence[Item], count: int, seed: int, *names: str | int) -> list[Item]:
    """`count` of the items, or all, drawn without replacement by seed and names: files are often sorted."""
    order = torch.randperm(len(items), generator=stream(seed, *names), device="cpu")
    return [items[int(i)] for i in order[:count]]


def columns_of_link(method: Method, *, seed: int, layer: str, link: int, rank: int, features: int) -> Tensor:
    """The `rank` distinct columns out of `features` that link `link` (from 0) selects: int64 (rank,).

    First columns: the link-th block, modulo `features` (2606.13767, Algorithm 3). Sampled: the link-th run of a random
    permutation, and a new permutation once all columns are used; or, by `layout="block"`, a contiguous random block.
    """
    if method.where == "selector":
        return (_range(rank) + link * rank) % features
    if method.layout == "block":
        offset = torch.randint(features - rank + 1, (1,), generator=stream(seed, "block", layer, link), device="cpu")
        return _range(rank) + offset
    runs = math.ceil(features / rank)
    cycle, run = divmod(link, runs)
    permutation = torch.randperm(features, generator=stream(seed, "columns", layer, cycle), device="cpu")
    # The last run of a cycle is filled up from the permutation's start where rank does not divide features.
    return permutation[(_range(rank) + run * rank) % features]


def random_factor(init: LoraAInit, *, seed: int, layer: str, link: int, rank: int, features: int) -> Tensor:
    """A random A, fp32 (rank, features): uniform on +-1/sqrt(features) as stock PEFT, N(0, 0.02^2) as in 2606.13767, or
    with Haar-distributed orthonormal rows."""
    generator = stream(seed, "A", layer, link)
    # Explicit, because a script may have changed torch's default dtype and device.
    fp32: dict[str, Any] = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    if init == "kaiming":
        bound = 1.0 / math.sqrt(features)
        return (torch.rand(rank, features, **fp32) * 2 - 1) * bound
    if init == "normal":
        return torch.randn(rank, features, **fp32) * 0.02
    gaussian = torch.randn(features, rank, generator=generator, dtype=torch.float64, device="cpu")
    q, r = torch.linalg.qr(gaussian)
    return (q * torch.sign(torch.diagonal(r))).T.to(torch.float32).contiguous()


def one_hot(columns: Tensor, features: int) -> Tensor:
    """The selector S (rank, features) of `columns`, with x S^T = x[..., columns]: the A of a saved column method."""
    selector = torch.zeros(len(columns), features, dtype=torch.float32, device="cpu")
    selector[_range(len(columns)), columns.cpu()] = 1.0
    return selector


def _range(count: int) -> Tensor:
    return torch.arange(count, device="cpu")
