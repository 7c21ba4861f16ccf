"""What things are called in a runs folder. Imports nothing, for those who must start at once."""

from __future__ import annotations

import re

RECORD = "run.json"
SPEC = "spec.json"
"""What a run is that has no record yet."""
ASIDE = "run.damaged.json"
"""A record that was moved aside, so that its run is done again."""
LOCKS = ".locks"
HISTORY = "history.jsonl"
PREDICTIONS = "predictions.npz"
TRAIN_LOSSES = "train_losses"
"""The key of the training losses in `predictions.npz`."""
TRAJECTORY = "trajectory"
TRACEBACK = "error.txt"
"""Why a run failed, in full."""
RUN_ID = re.compile(r"[0-9a-f]{16}")
