"""docs/performance.md and docs/performance.svg from the benchmarks' JSON; no figure on that page is typed by hand.

python benchmarks/write_performance.py STEPS.json ... [--start-up S.json] --out docs; `make performance` does it.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
from costs import whole_runs
from costs.labels import AGAIN, FLOOR, FUSED_FLOOR

BUSY = 0.6
"""Load average over processors above which a run is said to be one on a busy machine."""

TOO_FAR = 0.02
"""Of the two floors from their mean: a step of the same work, slower by this for its place in memory alone."""

AIMS = {"qv": (1.015, 1.005), "all-linear": (1.04, 1.035)}
"""For the adapted layers: the step and the bytes kept of a column method over the floor's, at most."""
FOLDED_AIMS = {"qv": 1.04, "all-linear": 1.12}
BESIDE_AIMS = {"all-linear": 1.45}
"""The same of bf16, with the columns in W and beside it; set for an H100, graph-captured or compiled."""
TARGETS = {"qv": "query and value", "attention": "attention's linears", "all-linear": "all linears"}
PACA = "PaCA, a function a layer"
OTHERS = (
    ("cla", PACA),
    ("r-cla", PACA),
    ("cla, folded", PACA),
    ("cla", "PEFT LoRA"),
    ("lora", "PEFT LoRA"),
    ("cola", "PEFT LoRA"),
    ("asym", "PEFT LoRA, A frozen"),
    ("rac", "PEFT LoRA, A frozen"),
)
COLUMN_METHODS = ("cla", "r-cla", "c3la", "paca", "d-paca")

INTRODUCTION = """# What a training step costs

Written by `python benchmarks/write_performance.py`; the figures come from `python benchmarks/step_cost.py`.

The limit of every method that adapts a frozen model is the **frozen floor**: the same network, its backbone frozen,
its task head trained, and a trainable bias on the first adapted layer, so that gradients flow down to that layer and
nothing is adapted. All times are ratios to it. In each round every line is stepped once, in an order drawn afresh; a
ratio is the median over the rounds of a line's step over the floor's in the same round, with its distribution-free
95 % interval. A step is forward, backward and AdamW's update (fused), dropout 0, the head trained in every line.

The floor is there twice, built first and (*{again}*) built last, and ratios are to the mean of both: what is built
later has a worse place in memory. Differences smaller than that between the two floors mean nothing. *Kept* is what
autograd keeps between forward and backward, *peak* the most bytes above the resting state in a step, *FLOPs* torch's
own count, all three over the floor's; *kernels* are operators that compute something, forward + backward + update.
These are exact. *PaCA, a function a layer* is PaCA plainly written: one autograd function a layer, columns written at
every forward (its authors' code writes them at every other one). A chain is in its second link. Of a compiled case
bytes, FLOPs and kernels are those of the same step uncompiled.
"""

READING = """## What makes the difference

- A folded column method is the layer's own product. What it adds is one copy of r columns for every input (shared by
  q, k and v), one skinny product a layer in the backward, and the columns' way back into W after the update: one
  foreach call for runs of columns (`cla`, `c3la`, `d-paca`), a copy a layer for sampled ones, which on a CPU costs a
  cache line an entry.
- `lora`, `asym`, `cola`, `rac` accumulate the update into the layer's output, and its gradient into the input's
  gradient, in place: stock PEFT makes two tensors of the output's size for the first and one of the input's for the
  second. With weights below fp32, PEFT keeps every input widened to the factors' fp32; here it is kept as it is.
- The finished links of `cola` and `rac` stand in W itself (a copy of the adapted weights is kept from the second link
  on), so later links cost what the first did. Where W can't be written they are added beside it.
- With weights of gigabytes it matters where a network lies in memory: of the blocks of the 8 B Llama the two floors
  lie apart by what the table says, though both do the same. In fp32 these blocks tell full fine-tuning apart, and the
  bytes; the other lines change places from one measurement to the next.
- In bf16 the plain PaCA trains columns that are themselves bf16, and small updates round away; `cla` and `r-cla` keep
  fp32 factors beside the weight there, and cost more for it, unless the fold is asked for (*folded*).
- On the network `host` there is next to no arithmetic; what is left is the host's work, as with small models on a GPU
  in eager mode.
"""


def main() -> None:
    """Command line."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    flags.add_argument("results", type=Path, nargs="+", help="JSON files of step_cost.py")
    flags.add_argument("--start-up", type=Path, help="JSON of start_up.py")
    flags.add_argument("--out", type=Path, default=Path(), help="folder of the page; the project's own is docs")
    given = flags.parse_args()
    runs = [_read(path) for path in given.results]
    parts = [page(runs)]
    parts += [] if given.start_up is None else [whole_runs.start_up(_read(given.start_up))]
    (given.out / "performance.md").write_text("\n".join(parts), encoding="utf-8")
    plot(runs, given.out / "performance.svg")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def page(runs: list[dict[str, Any]]) -> str:
    """The page as Markdown."""
    parts = [INTRODUCTION.format(again=AGAIN), "![Step times over the frozen floor](performance.svg)\n"]
    if not any(run["device"].startswith("cuda") for run in runs):
        parts.append(
            "**Figures of a GPU are missing.** The benchmark takes `--device cuda` and has not been run there yet. "
            "What follows was measured on a CPU.\n"
        )
    for about, same in _by_machine(runs).items():
        loads = [load for run in same for case in run["cases"] for load in case["load_average"]]
        parts.append(about)
        if max(loads) > BUSY * same[0]["processors"]:
            parts.append(
                f"**The machine was not quiet** (load average {min(loads):.1f} to {max(loads):.1f} on "
                f"{same[0]['processors']} processors). CPU time is not wall time, but caches and memory are shared: "
                f"read the intervals, and *{AGAIN}*.\n"
            )
        cases = [case for run in same for case in run["cases"]]
        parts += [summary(cases), aims(cases), aims_in_bf16(cases), beside_others(cases)]
        parts += [table(case) for case in cases]
    return "\n".join([*parts, READING])


def _by_machine(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Runs of one machine, clock and day under one heading."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        found[f"## {run['device']}\n\n{run['finished'][:10]}; {run['clock']}; {versions}.\n"].append(run)
    return found


def aims(cases: list[dict[str, Any]]) -> str:
    """What was aimed at for column methods in fp32, and what was found; nothing where no case is of that kind."""
    rows = [
        "| aimed at, of the floor | step | cla | r-cla | PaCA, a function a layer | kept | cla | r-cla | extra time of"
        " cla | of r-cla |",
        "|---|---:|---|---|---|---:|---|---|---:|---:|",
    ]
    for case in cases:
        aim = AIMS.get(case["targets"])
        if aim is None or case["dtype"] != "fp32" or case["model"] == "host" or "cla" not in case["lines"]:
            continue
        floor = case["lines"][FLOOR]["saved_bytes"]
        shown = [case["lines"].get(label) for label in ("cla", "r-cla", PACA)]
        steps = [_timed(row, aim[0], case) if row else "" for row in shown]
        eager = case["mode"] == "eager"
        kept = [_met(row["saved_bytes"] / floor, aim[1]) if row and eager else "" for row in shown[:2]]
        extra = [_share(case["lines"], row) for row in shown[:2]]
        cells = [_name(case), str(aim[0]), *steps, str(aim[1]), *kept, *extra]
        rows.append("| " + " | ".join(cells) + " |")
    if len(rows) == 2:
        return ""
    return "\n".join(rows) + (
        "\n\n*Extra time* is what a step takes beyond the floor's, in per cent of what stock PEFT's LoRA takes beyond"
        " it: the same work costs more over one processor's floor than over another's.\n"
    )


def aims_in_bf16(cases: list[dict[str, Any]]) -> str:
    """The same in bf16, where the fold has to be asked for; nothing where no case is of that kind."""
    head = [f"{label}{suffix}" for suffix in ("", ", folded") for label in ("cla", "r-cla")]
    rows = [f"| in bf16, aimed at on a GPU | {' | '.join(head)} |", "|---|" + "---|" * len(head)]
    for case in cases:
        if case["dtype"] != "bf16":
            continue
        cells = []
        for label in head:
            aim = (FOLDED_AIMS if "folded" in label else BESIDE_AIMS).get(case["targets"])
            row = case["lines"].get(label)
            if not row or aim is None:
                cells.append(f"{row['over_floor']['median']:.3f}" if row else "")
            else:
                cells.append(f"{_timed(row, aim, case)} ({aim:g})")
        rows.append("| " + " | ".join([_name(case), *cells]) + " |")
    return "" if len(rows) == 2 else "\n".join(rows) + "\n"


def _share(lines: dict[str, Any], row: Any) -> str:
    """The line's time beyond the floor over PEFT LoRA's; nothing where PEFT's own can't be told from the floor."""
    peft = lines.get("PEFT LoRA")
    if not row or peft is None or peft["over_floor"]["low"] <= 1.0:
        return ""
    return f"{100 * (row['over_floor']['median'] - 1) / (peft['over_floor']['median'] - 1):.0f} %"


def _met(found: float, aim: float) -> str:
    """The figure, and whether it is at most what was aimed at."""
    return f"{found:.3f}, {'met' if found <= aim else 'missed'}"


def _timed(row: dict[str, Any], aim: float, case: dict[str, Any]) -> str:
    """The same of a step; neither where the aim lies within its interval, or as near to it as the two floors lie to
    their mean, or where these lie too far from it to tell anything."""
    ratio, apart = row["over_floor"], _apart(case)
    if apart > TOO_FAR or ratio["low"] - apart <= aim < ratio["high"] + apart:
        return f"{ratio['median']:.3f}, within noise"
    return _met(ratio["median"], aim)


def _apart(case: dict[str, Any]) -> float:
    """How far the two floors lie from their mean: what a network's place in memory makes of one and the same step."""
    floors = [case["lines"][label]["over_floor"]["median"] for label in (FLOOR, AGAIN) if label in case["lines"]]
    return (max(floors) - min(floors)) / 2


def summary(cases: list[dict[str, Any]]) -> str:
    """One row a case: the lines of most interest."""
    shown = [
        "full fine-tuning",
        "PEFT LoRA",
        "PEFT LoRA, A frozen",
        PACA,
        "lora",
        "asym",
        "cla",
        "r-cla",
    ]
    rows = ["| step over the floor | " + " | ".join(shown) + " |", "|---|" + "---:|" * len(shown)]
    for case in cases:
        found = [case["lines"].get(label) for label in shown]
        cells = [_about(row["over_floor"]) if row else "" for row in found]
        rows.append(f"| {_name(case)} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n\n~: the interval is wider than a tenth of the figure; it stands in the case's table.\n"


def _about(ratio: dict[str, float]) -> str:
    vague = ratio["high"] - ratio["low"] > 0.1 * ratio["median"]
    return f"{'~' if vague else ''}{ratio['median']:.2f}"


def beside_others(cases: list[dict[str, Any]]) -> str:
    """Our lines over those that they were to be no slower than, and the peak over stock LoRA's."""
    head = [f"{ours} over {theirs}" for ours, theirs in OTHERS]
    rows = ["| aimed at: at most 1 | " + " | ".join(head) + " | peak of cla, at most 0.70 with all linears |"]
    rows.append("|---|" + "---:|" * (len(OTHERS) + 1))
    for case in cases:
        lines = case["lines"]
        cells = [_over(lines[a], lines[b], _apart(case)) if a in lines and b in lines else "" for a, b in OTHERS]
        peak = ""
        if {"cla", "PEFT LoRA"} <= lines.keys() and case["mode"] == "eager":
            peak = f"{lines['cla']['peak_bytes'] / lines['PEFT LoRA']['peak_bytes']:.2f}"
        rows.append(f"| {_name(case)} | " + " | ".join([*cells, peak]) + " |")
    return "\n".join(rows) + (
        "\n\n*slower*: the intervals lie apart, and further than the two floors lie from their mean; all other figures"
        " above 1 are within noise from it.\n"
    )


def _over(ours: dict[str, Any], theirs: dict[str, Any], apart: float) -> str:
    mine, other = ours["over_floor"], theirs["over_floor"]
    slower = ", slower" if mine["low"] > other["high"] + apart else ""
    return f"{mine['median'] / other['median']:.2f}{slower}"


def table(case: dict[str, Any]) -> str:
    """A case in full."""
    floor = case["lines"][FLOOR]
    rows = [
        f"### {_name(case)}\n",
        f"{case['about']}; rank {case['rank']}, a batch of {case['batch']} ({case['tokens']} tokens), "
        f"{case['rounds']} rounds.\n",
        "| | step over the floor | 95 % | over the fused floor | forward and backward, ms | update, ms | kept | peak |"
        " FLOPs | kernels |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for label, row in case["lines"].items():
        ratio, own, kernels = row["over_floor"], row["milliseconds"], row["kernels"]
        fused = f"{row['over_fused_floor']['median']:.3f}" if row["over_fused_floor"] else ""
        cells = [
            label,
            f"{ratio['median']:.3f}",
            f"{ratio['low']:.3f} to {ratio['high']:.3f}",
            fused,
            f"{own['forward_backward']:.2f}",
            f"{own['update']:.2f}",
            f"{row['saved_bytes'] / floor['saved_bytes']:.3f}",
            f"{row['peak_bytes'] / floor['peak_bytes']:.3f}",
            f"{row['flops'] / floor['flops']:.3f}",
            f"{kernels['forward']} + {kernels['backward']} + {kernels['update']}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    if len(case.get("over", (FLOOR, AGAIN))) == 1:
        rows.append("\nRatios to one floor: there was no memory for the second.")
    if case["left_out_for_memory"]:
        rows.append(f"\nLeft out for memory: {', '.join(case['left_out_for_memory'])}.")
    return "\n".join(rows) + "\n"


def plot(runs: list[dict[str, Any]], file: Path) -> None:
    """A panel a case: every line's ratio with its interval."""
    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "performance", "svg.fonttype": "none"})  # the same input gives the same file
    import matplotlib.pyplot as plt

    cases = [case for run in runs for case in run["cases"]]
    across = min(3, len(cases))
    down = -(-len(cases) // across)
    figure, axes = plt.subplots(down, across, figsize=(4.2 * across, 3.6 * down), squeeze=False, layout="constrained")
    for axis, case in zip(axes.flat, cases):
        lines = {label: row for label, row in case["lines"].items() if label not in (FLOOR, FUSED_FLOOR)}
        for place, (label, row) in enumerate(lines.items()):
            ratio = row["over_floor"]
            color = "#1f77b4" if label.split(",")[0] in COLUMN_METHODS else "#777777"
            axis.plot([ratio["low"], ratio["high"]], [place, place], color=color, linewidth=2)
            axis.plot(ratio["median"], place, "o", color=color, markersize=4)
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set_yticks(range(len(lines)), list(lines), fontsize=7)
        axis.invert_yaxis()
        axis.set_title(_name(case), fontsize=8)
        axis.tick_params(axis="x", labelsize=7)
        axis.grid(axis="x", linewidth=0.3)
    for axis in list(axes.flat)[len(cases) :]:
        axis.remove()
    figure.supxlabel("step over the frozen floor (median and 95 % interval; column methods blue)", fontsize=8)
    figure.savefig(file, metadata={"Date": None})


def _name(case: dict[str, Any]) -> str:
    size = " x ".join(str(side) for side in case["batch"][: 1 if case["model"].startswith("vit") else 2])
    return f"{case['model']}, {size}, {TARGETS[case['targets']]}, {case['dtype']}, {case['mode']}"


if __name__ == "__main__":
    main()
