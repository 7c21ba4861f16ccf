"""Typed errors: each says in one line what is wrong, where, and what to do.

The command line prints the message without a traceback and exits with `exit_code`. They survive pickling.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class TunewiseError(Exception):
    """An error that the user can fix. `str(error)` is one line."""

    exit_code = 2
    on_all_ranks = False
    """Whether all processes that train together raise it."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class SpecError(TunewiseError):
    """A flag, a spec file or an argument is wrong."""


class NoMethodWithinLimits(SpecError):
    """No method is within the limits that were set; says what would have to give."""

    exit_code = 5


class DataError(TunewiseError):
    """A data file can't be used; names the file and, where there is one, the row."""


class ModelError(TunewiseError):
    """A model can't be loaded, or a layer of it can't be adapted."""


class StoreError(TunewiseError):
    """A run folder or an adapter folder is damaged, incomplete or belongs to another base model."""

    exit_code = 3


class ExportError(TunewiseError):
    """An exported model does not compute what the adapter does; nothing was written."""

    exit_code = 1


class InsufficientResources(TunewiseError):
    """What is asked for will not fit memory or disk; names what would."""

    exit_code = 6


class MeasureError(TunewiseError):
    """A run is not of a kind that a measure applies to, or lacks what it needs; the reason stands in the report."""


class DivergedError(TunewiseError):
    """Loss or gradient is NaN or infinite; the run is marked `diverged` and is never part of a mean."""

    exit_code = 4


_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",  # torch
    "cannot allocate memory",  # the system: a file that can't be mapped, a process that can't be started
    "not enough memory",  # torch under Windows
    "bad_alloc",
    "alloc_failed",  # cuBLAS, cuDNN, cuSOLVER
    "could not create a primitive",  # oneDNN's only words for it
    "could not create a memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the host or a device, also where a later error hides that one."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(words in text for words in _OUT_OF_MEMORY):
        return True
    before = error.__cause__ or error.__context__
    return before is not None and is_out_of_memory(before)


def first_line(error: BaseException, most: int = 200) -> str:
    """The first line of the message of an error, or the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


@contextlib.contextmanager
def out_of_memory_noted(where: str) -> Iterator[None]:
    """Add to an out-of-memory error within the block where it was: 'while predictions were saved'."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) and not hasattr(error, "__notes__"):
            error.add_note(where)
        raise


def suggest_nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """A hint for a mistyped name: `; did you mean 'cla'?`, or the list of choices when nothing is near."""
    names = sorted(set(choices))
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.55)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"; choose one of: {shown}"
