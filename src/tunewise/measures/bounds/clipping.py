"""The gap that bounds are compared with: that of the loss clipped to [0, M], which is M/2-sub-Gaussian.

The theorems need a bounded loss, and cross-entropy has no bound. M = ln K, the loss of a random guess between K
classes: it depends on the number of classes alone, not on the sample.
"""

from __future__ import annotations

import math
import zipfile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunewise.measures.base import Values
from tunewise.measures.finished import Check, FinishedRun
from tunewise.store.names import PREDICTIONS, TRAIN_LOSSES
from tunewise.training.evaluation import evaluate, gap_sample


def clip_range(classes: int) -> float:
    """M = ln K, in nats."""
    return math.log(classes)


class ClippedGap(Values):
    """Means over splits of the loss clipped to [0, M], the selected epoch's weights in eval mode."""

    range: float
    """M"""
    train: float
    test: float
    gap: float
    """test - train"""
    error: float
    """Standard error of the gap over items, the two splits as samples; it does not cover seeds."""
    clipped: float
    """The share of test items whose loss is above M."""


def clipped_gap(train: NDArray[np.float64], test: NDArray[np.float64], loss_range: float) -> ClippedGap:
    """From the losses of single examples, in nats.

    >>> gap = clipped_gap(np.array([0.0, 0.5]), np.array([0.5, 9.0]), loss_range=1.0)
    >>> gap.train, gap.test, gap.gap, gap.clipped
    (0.25, 0.75, 0.5, 0.5)
    """
    clipped_train, clipped_test = np.clip(train, 0.0, loss_range), np.clip(test, 0.0, loss_range)
    variance = sum(float(x.var(ddof=1)) / len(x) if len(x) > 1 else 0.0 for x in (clipped_train, clipped_test))
    return ClippedGap(
        range=loss_range,
        train=float(clipped_train.mean()),
        test=float(clipped_test.mean()),
        gap=float(clipped_test.mean() - clipped_train.mean()),
        error=math.sqrt(variance),
        clipped=float((test > loss_range).mean()),
    )


def losses_of(run: FinishedRun, check: Check) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Losses of the training examples that the gap is taken from, and of all test examples: from the run's predictions
    where they are kept, else computed."""
    kept: dict[str, NDArray[np.float64]] = {}
    try:
        with np.load(run.folder / PREDICTIONS) as file:
            if TRAIN_LOSSES in file:
                kept["train"] = file[TRAIN_LOSSES].astype(np.float64)
            logits, labels = torch.from_numpy(file["logits"]), torch.from_numpy(file["labels"])
            kept["test"] = _losses(run, logits, labels)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        pass
    for name, split in (("train", gap_sample(run.spec, run.task)), ("test", run.task.test)):
        if len(kept.get(name, ())) != len(split):
            scored = evaluate(run.model, run.task, split, batch_size=4 * run.spec.training.batch_size, on_batch=check)
            kept[name] = _losses(run, scored.logits, scored.labels)
    return kept["train"], kept["test"]


def _losses(run: FinishedRun, logits: Tensor, labels: Tensor) -> NDArray[np.float64]:
    return np.asarray(run.task.losses(logits, labels).numpy(), dtype=np.float64)
