"""Checks of arguments: each returns a plain number or list, or raises `SpecError` with one line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import SupportsFloat, SupportsInt, cast

from tunewise.errors import SpecError

PerLayer = SupportsFloat | Iterable[SupportsFloat]
"""One number for every layer alike, or one for each."""


def number(name: str, value: SupportsFloat, above: float | None = None) -> float:
    """A finite number of at least 0, or greater than `above`."""
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise SpecError(f"{name} is {value!r}; a number is needed") from error
    need = "of at least 0" if above is None else f"greater than {above:g}"
    if not math.isfinite(result) or (result < 0 if above is None else result <= above):
        raise SpecError(f"{name} is {result:g}; a finite number {need} is needed")
    return result


def positive(name: str, value: SupportsFloat) -> float:
    """A finite number greater than 0."""
    return number(name, value, above=0.0)


def count(name: str, value: SupportsInt, least: int = 1) -> int:
    """A whole number of at least `least`."""
    try:
        result = int(value)
        whole = result == value
    except (TypeError, ValueError, OverflowError) as error:
        raise SpecError(f"{name} is {value!r}; a whole number is needed") from error
    if not whole or result < least:
        raise SpecError(f"{name} is {value}; a whole number of at least {least} is needed")
    return result


def probability(name: str, value: SupportsFloat) -> float:
    """A number strictly between 0 and 1."""
    result = number(name, value)
    if not 0 < result < 1:
        raise SpecError(f"{name} is {result:g}; a probability strictly between 0 and 1 is needed")
    return result


def per_layer(layers: int | None = None, /, **named: PerLayer) -> list[list[float]]:
    """Every argument as a list with one number for each layer; a single number is repeated.

    The default of `layers` is the length of the longest list.

    >>> per_layer(base_norms=[1, 2, 3], update_norms=0.5)
    [[1.0, 2.0, 3.0], [0.5, 0.5, 0.5]]
    """
    lists = {name: _listed(name, values) for name, values in named.items()}
    lengths = {name: len(values) for name, values in lists.items() if values is not None}
    layers = max(lengths.values(), default=1) if layers is None else layers
    for name, length in lengths.items():
        if length != layers or length == 0:
            raise SpecError(f"{name} has {length} entries for {layers} layers; give one a layer, or one number for all")
    return [lists[name] or [number(name, cast("SupportsFloat", value))] * layers for name, value in named.items()]


def layer_shapes(layers: Iterable[Sequence[int]]) -> list[tuple[int, int]]:
    """Pairs (out n, in m) of whole numbers, at least one pair."""
    result = []
    for position, shape in enumerate(layers):
        if not hasattr(shape, "__len__") or len(shape) != 2:
            raise SpecError(f"layers[{position}] is {shape!r}; a pair (out features, in features) is needed")
        result.append((count(f"layers[{position}][0]", shape[0]), count(f"layers[{position}][1]", shape[1])))
    if not result:
        raise SpecError("no layers; give a list of pairs (out features, in features)")
    return result


def _listed(name: str, values: PerLayer) -> list[float] | None:
    """The checked entries of a sequence; None for a single number."""
    if isinstance(values, str):
        raise SpecError(f"{name} is {values!r}; a number is needed")
    try:
        entries = list(cast("Iterable[SupportsFloat]", values))
    except TypeError:
        return None
    return [number(f"{name}[{position}]", value) for position, value in enumerate(entries)]
