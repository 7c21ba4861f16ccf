"""What a training step costs, method by method, as ratios to the frozen floor.

    python benchmarks/step_cost.py --out costs.json
    python benchmarks/step_cost.py --quick
    python benchmarks/write_performance.py costs.json        # the tables and the plot of docs/performance.md

The floor is the same network with its backbone frozen, its head trained, and a trainable bias on the first adapted
layer: gradients flow down to that layer and nothing is adapted, so no method on those layers can be faster. A case is
a network, the adapted layers, a precision, and eager or compiled; its lines are stepped in turn, in random order
within each round, and ratios are taken within rounds. On a CPU the clock is the CPU time of one thread.

The floor is there twice, built first and built last, and a ratio is to the mean of both: what is built later lies worse
in memory, which for weights of gigabytes can cost more than a method does.

FLOPs, kernels, bytes kept for the backward and the peak above the resting state are exact and need no quiet machine.
Lines that do not fit into memory beside the others are left out and named.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from costs.clock import Line, clock_of, interleaved, ratios
from costs.counts import counts
from costs.labels import AGAIN, FLOOR, FUSED_FLOOR
from costs.lines import WAYS, make_line
from costs.networks import NETWORKS, batch_of, build

from tunewise.quiet import quiet_libraries
from tunewise.store.environment import environment

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
QUICK = {"models": "host,minilm", "targets": "all-linear", "dtypes": "fp32", "modes": "eager", "repeats": 7}


def main() -> None:
    """Command line."""
    given = _arguments()
    quiet_libraries()
    torch.set_num_threads(1)
    device = torch.device(given.device)
    cases = []
    for model in given.models:
        for targets in given.targets:
            for dtype in given.dtypes:
                for mode in given.modes:
                    case = measure(given, model, targets, dtype, mode, device)
                    cases.append(case)
                    print(table(case), flush=True)
                    if given.out:  # after every case: a run that is cut short keeps what it has
                        given.out.write_text(json.dumps(record(device, cases), indent=1) + "\n", encoding="utf-8")


def measure(
    given: argparse.Namespace, model: str, targets: str, dtype: str, mode: str, device: torch.device
) -> dict[str, Any]:
    """One case: every line that fits into memory."""
    batch = batch_of(model, dtype=DTYPES[dtype], device=device, rows=given.rows, tokens=given.tokens)
    rank = 4 if model == "host" else given.rank
    lines: list[Line] = []
    left_out: list[str] = []
    exact: dict[str, Any] = {}
    for label, way in WAYS.items():
        if given.lines and label not in (*given.lines, AGAIN):
            continue
        if way.folds_low_precision and dtype == "fp32":
            continue
        network = build(model, dtype=DTYPES[dtype], device=device)
        bytes_of_weights = sum(p.numel() * p.element_size() for p in network.parameters())
        if _free(device) < bytes_of_weights * (4.5 if label == "full fine-tuning" else 2) + 2**30:
            left_out.append(label)
            continue
        adapted, adamw = make_line(label, network, targets, rank)
        line = Line(label, adapted, adapted, adamw, batch)
        exact[label] = counts(line)
        if mode == "compiled":
            line.run = torch.compile(adapted, fullgraph=True, dynamic=False)
        lines.append(line)
        del network, adapted, adamw
        gc.collect()
    started = os.getloadavg()[0]
    times = interleaved(lines, given.repeats)
    floors = [label for label in (FLOOR, AGAIN) if label in times]
    rows = {}
    for line in lines:
        forward_backward, update = zip(*times[line.label], strict=True)
        rows[line.label] = {
            "about": WAYS[line.label].about,
            "over_floor": ratios(times, line.label, floors),
            "over_fused_floor": ratios(times, line.label, [FUSED_FLOOR]) if FUSED_FLOOR in times else None,
            "milliseconds": {
                "forward_backward": 1e3 * sorted(forward_backward)[len(forward_backward) // 2],
                "update": 1e3 * sorted(update)[len(update) // 2],
            },
            **exact[line.label],
        }
    if mode == "compiled":
        torch._dynamo.reset()
    image = NETWORKS[model].image
    return {
        "model": model,
        "about": NETWORKS[model].about,
        "targets": targets,
        "dtype": dtype,
        "mode": mode,
        "rank": rank,
        "batch": list(batch["pixel_values" if image else "input_ids"].shape),
        "tokens": len(batch["labels"]) * 197 if image else batch["input_ids"].numel(),
        "rounds": given.repeats,
        "load_average": [started, os.getloadavg()[0]],
        "left_out_for_memory": left_out,
        "over": floors,
        "lines": rows,
    }


def record(device: torch.device, cases: list[dict[str, Any]]) -> dict[str, Any]:
    """What is written: the machine, the command with its settings, the cases."""
    here = environment()
    return {
        "kind": "step cost",
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": here.device,
        "platform": here.platform,
        "python": here.python,
        "versions": here.versions,
        "processors": os.cpu_count(),
        "clock": clock_of(device),
        "command": " ".join(sys.argv),
        "cases": cases,
    }


def table(case: dict[str, Any]) -> str:
    """A case as text."""
    head = f"{case['model']}, {case['targets']}, {case['dtype']}, {case['mode']}, rank {case['rank']}, "
    lines = [
        f"\n{head}{case['tokens']} tokens, {case['rounds']} rounds, load {case['load_average'][0]:.1f}",
        f"{'':26} {'x floor':>8} {'95 %':>15} {'fb ms':>9} {'update':>8} {'kept':>7} {'peak':>7} {'FLOPs':>7}  kernels",
    ]
    floor = case["lines"].get(FLOOR)
    for label, row in case["lines"].items():
        ratio, own, kernels = row["over_floor"], row["milliseconds"], row["kernels"]
        lines.append(
            f"{label:26} {ratio['median']:8.3f} {ratio['low']:7.3f}-{ratio['high']:.3f}"
            f" {own['forward_backward']:10.2f} {own['update']:8.2f}"
            f" {row['saved_bytes'] / floor['saved_bytes']:7.3f} {row['peak_bytes'] / floor['peak_bytes']:7.3f}"
            f" {row['flops'] / floor['flops']:7.3f}  {kernels['forward']} + {kernels['backward']} + {kernels['update']}"
        )
    if case["left_out_for_memory"]:
        lines.append(f"left out for memory: {', '.join(case['left_out_for_memory'])}")
    return "\n".join(lines)


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info()[0] if device.type == "cuda" else psutil.virtual_memory().available


def _arguments() -> argparse.Namespace:
    def names(allowed: Any, between: str = ",") -> Any:
        def split(text: str) -> list[str]:
            chosen = [part.strip() for part in text.split(between)]
            for name in chosen:
                if name not in allowed:
                    raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(allowed)}")
            return chosen

        return split

    flags = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    flags.add_argument("--models", type=names(NETWORKS), default="minilm,roberta-base,vit-tiny,vit-base,host")
    flags.add_argument("--targets", type=names(("qv", "attention", "all-linear")), default="qv,all-linear")
    flags.add_argument("--dtypes", type=names(DTYPES), default="fp32")
    flags.add_argument("--modes", type=names(("eager", "compiled")), default="eager")
    flags.add_argument(
        "--lines", type=names(WAYS, ";"), help="some of the lines, between semicolons (the floor is needed)"
    )
    flags.add_argument("--repeats", type=int, default=15, help="rounds of a case")
    flags.add_argument("--rank", type=int, default=16, help="16; the network 'host' takes 4")
    flags.add_argument("--rows", type=int, help="examples in a batch")
    flags.add_argument("--tokens", type=int, help="tokens an example (not for images)")
    flags.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    flags.add_argument("--quick", action="store_true", help="two networks, all linears, fp32, eager, 7 rounds")
    flags.add_argument("--out", type=Path, help="JSON")
    flags.set_defaults(**(QUICK if "--quick" in sys.argv else {}))
    given = flags.parse_args()
    if given.lines and FLOOR not in given.lines:
        flags.error(f"--lines needs {FLOOR!r}: everything is measured against it")
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        flags.error(f"--device {given.device}: this torch ({torch.__version__}) finds no such device")
    return given


if __name__ == "__main__":
    main()
