"""Arithmetic without overflow: decimal numbers of 40 digits and practically any exponent.

A product of the norms of 400 layers is far beyond the range of floats. In this arithmetic the recurrences of the
theorems need no logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, DivisionByZero, InvalidOperation, Overflow, localcontext
from typing import TypedDict

_WIDE = Context(prec=40, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[InvalidOperation, DivisionByZero, Overflow])


class _ValueAndLog(TypedDict):
    value: float
    log_value: float


def wide() -> AbstractContextManager[Context]:
    """`with wide():` decimal numbers have 40 digits and do not overflow."""
    return localcontext(_WIDE)


def decimals(values: Iterable[float]) -> list[Decimal]:
    """Exact: a float is a finite decimal number."""
    return [Decimal(value) for value in values]


def value_and_log(x: Decimal) -> _ValueAndLog:
    """The nearest float (`inf` beyond the range) and the natural logarithm: two fields of `Bound`."""
    with wide():
        return {"value": float(x), "log_value": float(x.ln()) if x else -math.inf}
