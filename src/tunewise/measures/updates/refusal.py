"""What PEFT answers where an adapter can't be put on a model or merged into it, as one clear line.

PEFT has no error type of its own: each kind of adapter raises what its code runs into.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tunewise.errors import TunewiseError, is_out_of_memory

_RAISED = (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


@contextlib.contextmanager
def refusal(kind: type[TunewiseError], what: str) -> Iterator[None]:
    """Around calls of PEFT: what it raises becomes `kind`, '<what>: <the last line of PEFT's words>'. Our own errors
    and memory that ran out pass as they are."""
    try:
        yield
    except _RAISED as error:
        if is_out_of_memory(error):
            raise
        raise kind(f"{what}: {last_line(error)}") from None


def last_line(error: BaseException) -> str:
    """The last line of an error's text, 200 characters of it at most; its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:200]
