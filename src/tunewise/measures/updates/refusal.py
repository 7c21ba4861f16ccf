"""Errors of PEFT where an adapter can't be attached or merged, as one line. PEFT has no error type of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tunewise.errors import TunewiseError, is_out_of_memory

_RAISED = (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


@contextlib.contextmanager
def refusal(kind: type[TunewiseError], what: str) -> Iterator[None]:
    """Turn errors of PEFT into `kind`, '<what>: <last line>'; our own and out-of-memory errors pass unchanged."""
    try:
        yield
    except _RAISED as error:
        if is_out_of_memory(error):
            raise
        raise kind(f"{what}: {last_line(error)}") from None


def last_line(error: BaseException) -> str:
    """The last line of an error's text, 200 characters of it at most; its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:200]
