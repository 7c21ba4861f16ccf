"""The page's part on whole runs: before the first step, packed, in processes, with a cached prefix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunewise.packing.passes import GAINS_BELOW, PASS

PACKED = """## Packed runs

Runs of one model and data set can share one resident backbone (`compare --pack S`): their batches go through it as one,
each past its own adapters and head, with its own order of the data, dropout, optimizer and selection. MiniLM's shape,
`lora` and `cla` in turn on query and value, dropout {dropout}, runs of {steps} steps: how many times the runs an hour
of one after another (CPU time of one thread, interleaved). Load average {load}.

"""

PROCESSES = """
The same runs one by one in processes of one thread each (`compare --jobs N`) on {cores} cores, runs an hour by the wall
clock; packs of one thread beside them, by CPU time:

"""

PACKED_READING = """
On a CPU packing pays where a run's step has few tokens: there the matrix products don't fill a core, and every call
costs as much as what it computes. From {little} tokens a step on they do: there packs reached {most_gained:.2f} at
most, and the plan says that they gain little. A pack goes through the backbone in passes of at most {most:,} tokens;
above that, intermediate results are so large that their memory comes from the system anew each time. Runs whose
batches are of other lengths are padded to the longest in their pass, or go in another one. Processes and
packs go together: `--jobs 2 --pack 4`. Packs have not been run on a GPU, where a pass has no limit.
"""

PREFIX = """## A cached prefix

Where the last blocks alone are adapted (`--layers "last 2"`), `--cache-prefix` computes the blocks below once for every
example. Step with it over step without, {rows} texts of {tokens} tokens, MiniLM's shape; FLOPs by torch's own count.
Load average at the end: {load:.1f}.

| adapted blocks of 6 | time | 95 % | FLOPs |
|---|---:|---:|---:|
"""


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


def packed(run: dict[str, Any]) -> str:
    """A row a batch, a column a size of pack; the processes where they were timed."""
    sizes = [pack["runs"] for pack in run["cases"][0]["packs"]]
    before = run.get("load before")
    load = f"{f'{before[0]:.1f} at the start, ' if before else ''}{run['load'][0]:.1f} at the end"
    text = PACKED.format(dropout=run["dropout"], steps=run["steps"], load=load)
    text += line(["batch", *(f"S = {size}" for size in sizes)]) + line(["---", *["---:"] * len(sizes)])
    for case in run["cases"]:
        cells = [f"{p['speedup']:.2f} ({p['low']:.2f} to {p['high']:.2f})" for p in case["packs"]]
        text += line([f"{case['batch']} tokens", *cells])
    timed = [case for case in run["cases"] if case["processes"]]
    if timed:
        counts = [row["processes"] for row in timed[0]["processes"]]
        heads = [*(f"{count} process{'es' * (count > 1)}" for count in counts), f"a pack of {sizes[-1]}"]
        text += PROCESSES.format(cores=run["cores"])
        text += line(["batch", *heads]) + line(["---", *["---:"] * len(heads)])
        for case in timed:
            rates = [row["runs per hour"] for row in case["processes"]]
            cells = [f"{rates[0]:.0f}", *(f"{rate:.0f} (x {rate / rates[0]:.2f})" for rate in rates[1:])]
            pack = case["packs"][-1]["runs per hour"]["packed"]
            text += line([f"{case['batch']} tokens", *cells, f"{pack:.0f}"])
    large = [case for case in run["cases"] if case["tokens"] >= GAINS_BELOW]
    gained = max((pack["speedup"] for case in large for pack in case["packs"]), default=1.0)
    return text + PACKED_READING.format(little=GAINS_BELOW, most=PASS, most_gained=gained)


def prefix(run: dict[str, Any]) -> str:
    """A row for each number of adapted blocks."""
    text = PREFIX.format(rows=run["batch"][0], tokens=run["batch"][1], load=run["load"][0])
    for row in run["rows"]:
        interval = f"{row['low']:.2f} to {row['high']:.2f}"
        text += line([f"last {row['last']}", f"{row['time']:.2f}", interval, f"{row['flops']:.2f}"])
    return text


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"
