"""A method in one file: a row and a small adapter class. The contract suites run over it as over the catalog's own."""

from __future__ import annotations

import torch
from torch import Tensor

from tunewise import Chain, Method
from tunewise.methods.adapters.base import Adapter
from tunewise.registry import ADAPTERS


class CentredSigns(Adapter):
    """dW = s (B - mean over outputs) A: A is random signs, and each column of the update sums to 0."""

    def draw_part(self, part: int) -> Tensor:
        shape = (self.rank, self.target.in_features)
        signs = torch.randint(2, shape, generator=self.generator(part)) * 2.0 - 1.0
        return signs / self.target.in_features**0.5

    def place(self, where: Tensor) -> None:
        self.a.copy_(where)
        self.b.zero_()

    def identify(self, a: Tensor, b: Tensor) -> Tensor:
        return a

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.a, self.b - self.b.mean(dim=0)


ADAPTERS.register("centred-signs", CentredSigns)
ROW = Method("B", "random", chain=Chain(links=4), adapter="centred-signs", name="toy", summary="a chain of centred B")
