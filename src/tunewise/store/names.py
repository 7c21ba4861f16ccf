"""Names of files in a runs folder. Imports nothing heavy: commands must start at once."""

from __future__ import annotations

import re

RECORD = "run.json"
SPEC = "spec.json"
"""The specification of a run that has no record yet."""
ASIDE = "run.damaged.json"
"""A damaged record that was moved aside, so that its run is done again."""
LOCKS = ".locks"
HISTORY = "history.jsonl"
PREDICTIONS = "predictions.npz"
ANSWERS = "predictions.jsonl"
TRAIN_LOSSES = "train_losses"
"""The key of the losses of training examples in `predictions.npz`: those that the gap is taken from."""
TRACEBACK = "error.txt"
"""The traceback of a failed run."""
RUN_ID = re.compile(r"[0-9a-f]{16}")
