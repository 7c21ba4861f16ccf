"""The gap that a bound may stand beside: that of the loss clipped to [0, M], which is M/2-sub-Gaussian.

Cross-entropy has no upper end, and the theorems ask for one. M = ln K, the loss of a guess at random among K classes:
what is worse than chance counts as chance. It depends on the number of classes alone, not on the sample.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunewise.measures.finished import FinishedRun
from tunewise.training.evaluation import evaluate

TRAIN_LOSSES = "train_losses"
"""Its name in a run's `predictions.npz`."""


def clip_range(classes: int) -> float:
    """M = ln K, in nats."""
    return math.log(classes)


@dataclass(frozen=True)
class ClippedGap:
    """Means over whole splits of the loss clipped to [0, M], the selected epoch's weights in eval mode."""

    range: float
    train: float
    test: float
    gap: float
    """test - train"""
    error: float
    """Standard error of the gap over items: the two splits as samples. It knows nothing of seeds."""
    clipped: float
    """The share of test items whose loss is above M."""

    def content(self) -> dict[str, float]:
        return asdict(self)


def clipped_gap(train: NDArray[np.float64], test: NDArray[np.float64], loss_range: float) -> ClippedGap:
    """From the losses of single examples, in nats.

    >>> gap = clipped_gap(np.array([0.0, 0.5]), np.array([0.5, 9.0]), loss_range=1.0)
    >>> gap.train, gap.test, gap.gap, gap.clipped
    (0.25, 0.75, 0.5, 0.5)
    """
    below, above = np.clip(train, 0.0, loss_range), np.clip(test, 0.0, loss_range)
    spread = sum(float(x.var(ddof=1)) / len(x) if len(x) > 1 else 0.0 for x in (below, above))
    return ClippedGap(
        range=loss_range,
        train=float(below.mean()),
        test=float(above.mean()),
        gap=float(above.mean() - below.mean()),
        error=math.sqrt(spread),
        clipped=float((test > loss_range).mean()),
    )


def losses_of(run: FinishedRun, check: Callable[[], None]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Losses of all training and all test examples: from the run's own predictions where they are kept, else scored
    anew."""
    kept: dict[str, NDArray[np.float64]] = {}
    try:
        with np.load(run.folder / "predictions.npz") as file:
            if TRAIN_LOSSES in file:
                kept["train"] = file[TRAIN_LOSSES].astype(np.float64)
            logits, labels = torch.from_numpy(file["logits"]), torch.from_numpy(file["labels"])
            kept["test"] = _losses(run, logits, labels)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        pass
    for name, split in (("train", run.task.train), ("test", run.task.test)):
        if len(kept.get(name, ())) != len(split):
            scored = evaluate(run.model, run.task, split, batch_size=4 * run.spec.training.batch_size, on_batch=check)
            kept[name] = _losses(run, scored.logits, scored.labels)
    return kept["train"], kept["test"]


def _losses(run: FinishedRun, logits: Tensor, labels: Tensor) -> NDArray[np.float64]:
    return np.asarray(run.task.losses(logits, labels).numpy(), dtype=np.float64)
