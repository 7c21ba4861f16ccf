"""What a reader should know of a method's runs: one list for the table, its legend and the recommendation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    """A reason to read a method's row with care."""

    key: str
    """The attribute of `MethodSummary` that says whether it applies."""
    name: str
    """Beside the method in the table."""
    meaning: str
    """In the legend of the table."""
    doubt: str
    """A clause of the recommendation, about `{methods}`."""


MARKS = (
    Mark(
        "learned_nothing",
        "learned nothing",
        "the mean is no better than that of the row “no learning”",
        "{methods} learned nothing",
    ),
    Mark(
        "never_fell",
        "loss never fell",
        "in most runs the training loss of the kept epoch is at most 1 % below the mean of the first epoch",
        "the training loss of {methods} never fell, so another learning rate is needed",
    ),
    Mark(
        "untuned",
        "untuned rate",
        "the learning rate is a default, neither given nor searched for",
        "the learning rate of {methods} is an untuned default, so differences may be those of the rates (--tune 4 "
        "searches for them)",
    ),
    Mark(
        "rate_at_edge",
        "rate at an edge",
        "the best learning rate is the lowest or the highest that was tried",
        "the best learning rate of {methods} lies at an edge of those that were tried (--tune-extend tries more)",
    ),
    Mark(
        "still_falling",
        "loss still falling",
        "most runs kept their last epoch, with a validation loss at least 5 % below that of the epoch before",
        "the loss of {methods} was still falling in the last epoch: train longer (--epochs)",
    ),
    Mark(
        "disagrees",
        "runs disagree",
        "the scores of its runs differ by more than the means of the methods and than the choice of test items "
        "explains, or far more than those of the other methods (Cochran's C)",
        "the runs of {methods} disagree, so the mean says little and the learning rate may be too high",
    ),
)
