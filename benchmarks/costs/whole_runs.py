"""The page's part on whole runs: before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

START_UP = """## Before the first step

CPU seconds to attach a method to Llama-3-8B's shape on the meta device (rank 16; nothing is computed or stored there,
what is left is the host's work), and the bytes that attaching makes on MiniLM's shape, over those of its weights (all
linears, rank 16: the factors, A stored as one-hot rows where columns are selected, and W0's own columns; no copy of a
weight).

"""

ONE_STEP = """
LoRA-One's start, 2 + 2 x 2 passes over a sample of 64 examples, takes {seconds:.1f} s on MiniLM's shape (query and
value): as much as {steps:.0f} training steps of `lora` on an eighth of them. Load average at the end: {load:.1f}.
"""


def start_up(run: dict[str, Any]) -> str:
    """A row a method."""
    where = list(run["attach"])
    text = START_UP + line(["", *(f"{name}, s" for name in where), "bytes made"]) + line(["---", *["---:"] * 3])
    for label in run["attach"][where[0]]:
        made = run["bytes made"].get(label)
        cells = [f"{run['attach'][name][label]:.2f}" for name in where]
        text += line([label, *cells, "" if made is None else f"{made:.3f}"])
    return text + ONE_STEP.format(load=run["load"][0], **run["one-step start"])


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"
