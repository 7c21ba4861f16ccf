"""dW of one layer, as factors where it has any, and of a model's layers by name. W0 and dW are n x m (out x in)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunewise.errors import StoreError
from tunewise.measures._linalg import svd as top_singular
from tunewise.measures._linalg.svd import Triples
from tunewise.methods.draws import one_hot
from tunewise.models.layers import shape_of


@dataclass(frozen=True)
class LayerUpdate:
    """dW (n, m) = `left` (n, q) `right` (q, m), scales included; or `make_dense`, which forms dW at each call."""

    name: str
    shape: tuple[int, int]
    make_base: Callable[[], Tensor]
    left: Tensor | None = None
    right: Tensor | None = None
    make_dense: Callable[[], Tensor] | None = None

    @classmethod
    def of_factors(cls, name: str, base: nn.Module, left: Tensor, right: Tensor) -> LayerUpdate:
        """Repeated columns are added up. Raises `StoreError` for factors that do not fit or are not finite."""
        shape = shape_of(base)
        if (left.shape[0], right.shape[1]) != shape or left.shape[1] != right.shape[0]:
            raise StoreError(
                f"layer {name}: factors {tuple(left.shape)} and {tuple(right.shape)} do not fit its "
                f"{shape[0]} x {shape[1]} weight; this is another base model"
            )
        if not (bool(torch.isfinite(left).all()) and bool(torch.isfinite(right).all())):
            raise StoreError(f"layer {name}: the adapter holds NaN or infinity; it comes from a diverged run")
        left, right = left.detach().double(), right.detach().double()
        if _is_one_hot(right):
            left, right = _distinct_columns(left, right)
        return cls(name, shape, lambda: weight_of(base), left, right)

    @classmethod
    def of_dense(cls, name: str, base: nn.Module, make_dense: Callable[[], Tensor]) -> LayerUpdate:
        """From a function that forms dW (n, m)."""
        return cls(name, shape_of(base), lambda: weight_of(base), make_dense=make_dense)

    @property
    def base(self) -> Tensor:
        """W0 (n, m), in the precision that the model has it in; a view where it can be one."""
        return self.make_base()

    @property
    def has_factors(self) -> bool:
        return self.left is not None

    @property
    def rank_bound(self) -> int:
        """dW has at most this rank."""
        return min(*self.shape, self.left.shape[1]) if self.left is not None else min(self.shape)

    @property
    def columns(self) -> Tensor | None:
        """The input columns that dW touches, where it is a column method's; else None."""
        return self.right.argmax(dim=1) if self.right is not None and _is_one_hot(self.right) else None

    def delta(self) -> Tensor:
        """dW (n, m), fp64."""
        if self.left is not None and self.right is not None:
            return self.left @ self.right
        assert self.make_dense is not None
        return self.make_dense().double()

    def merged(self) -> Tensor:
        """W0 + dW (n, m), fp64."""
        return self.base.double() + self.delta()

    @cached_property
    def _triples(self) -> Triples:
        assert self.left is not None
        assert self.right is not None
        return top_singular.of_product(self.left, self.right)

    def singular_values(self) -> Tensor:
        """All singular values of dW, descending, fp64: min(n, m, q) where there are factors, else min(n, m)."""
        if self.has_factors:
            return self._triples[1]
        return top_singular.values_of_dense(self.delta())

    def top_singular_vectors(self, count: int) -> Triples:
        """U (n, k), values (k,), Vh (k, m) of dW, k = min(count, rank bound)."""
        if self.has_factors:
            u, values, vh = self._triples
            return u[:, :count], values[:count], vh[:count]
        return top_singular.of_dense(self.delta(), count)

    def spectral_norm(self) -> float:
        """The largest singular value of dW."""
        return float(self.top_singular_vectors(1)[1][0])

    def frobenius_norm(self) -> float:
        """The square root of the sum of squares of dW."""
        if self.has_factors:
            return float(self._triples[1].norm())
        return float(self.delta().norm())


class Updates(dict[str, LayerUpdate]):
    """Layer name -> update; `family`: the method; `left_out`: changed modules that are not linear layers."""

    def __init__(self, layers: Iterable[LayerUpdate], family: str, left_out: Iterable[str] = ()) -> None:
        super().__init__((layer.name, layer) for layer in layers)
        self.family = family
        self.left_out = list(left_out)


def weight_of(module: nn.Module) -> Tensor:
    """A linear layer's weight, out x in, dequantized where it is quantized."""
    return out_in(dequantize_module_weight(module).detach(), module)


def out_in(weight: Tensor, layer: nn.Module) -> Tensor:
    """A weight as `layer` stores its own, out x in."""
    return weight.T if isinstance(layer, Conv1D) else weight


def _is_one_hot(right: Tensor) -> bool:
    return bool(((right != 0).sum(dim=1) == 1).all())


def _distinct_columns(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with each column once."""
    at = right.abs().argmax(dim=1)
    columns, place = at.unique(return_inverse=True)
    scaled = left * right[torch.arange(len(at)), at]
    summed = left.new_zeros(left.shape[0], len(columns)).index_add_(1, place, scaled)
    return summed, one_hot(columns, right.shape[1]).to(right.dtype)
