"""Runs per hour: packed over one backbone, one after another, and a process per core.

    python benchmarks/packed.py --out benchmarks/results/packed.json

A run is `STEPS` training steps (forward, backward, clip, AdamW) of LoRA or cla, rank 8 on query and value, in turn;
the network is MiniLM's shape (6 layers, 384 wide) with random weights and its dropout of 0.1. Evaluation, loading and
saving are left out: they cost the same either way. Packs and single steps are timed in turn within rounds, a pack of
S against the S single steps of the same runs: CPU time of one thread on a CPU, wall-clock time on a GPU. Processes are
timed by the wall clock, all at once, and say something on a quiet machine alone; the load is written down before and
after. Six minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from tunewise.measures.cost.probe import median_interval
from tunewise.methods.attach import attach
from tunewise.packing.carrier import Carrier, Member
from tunewise.packing.streams import Stream
from tunewise.quiet import quiet_libraries
from tunewise.store.environment import environment
from tunewise.training.optimizers import optimizer

STEPS = 1000
SIZES = (1, 2, 4, 8)
METHODS = ("lora", "cla")
Shape = tuple[int, int, int]
"""Examples of a batch, and between which lengths its longest text is, drawn anew for each batch."""


def network(dropout: float) -> nn.Module:
    """MiniLM's shape with random weights."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=2000,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


def batches_of(shape: Shape, k: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """The batches of the k-th run, without end: no padding within a batch, two classes."""
    draw = torch.Generator().manual_seed(k)
    rows, shortest, longest = shape
    while True:
        length = int(torch.randint(shortest, longest + 1, (), generator=draw))
        yield {
            "input_ids": torch.randint(5, 2000, (rows, length), generator=draw).to(device),
            "attention_mask": torch.ones((rows, length), dtype=torch.long, device=device),
            "labels": torch.randint(0, 2, (rows,), generator=draw).to(device),
        }


def adapted(base: nn.Module, k: int, **options: Any) -> Any:
    """The model of the k-th run."""
    return attach(copy.deepcopy(base), METHODS[k % len(METHODS)], rank=8, targets="qv", seed=k, **options).train()


def update(model: nn.Module, adamw: torch.optim.Optimizer) -> None:
    """What a run does with its gradients, packed or not."""
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    adamw.step()
    adamw.zero_grad(set_to_none=True)


def single(base: nn.Module, k: int, shape: Shape, device: torch.device) -> Callable[[], None]:
    """A step of the k-th run by itself."""
    model = adapted(base, k).to(device)
    batches, adamw = batches_of(shape, k, device), optimizer(model, lr=1e-3)

    def step() -> None:
        model(**next(batches)).loss.backward()
        update(model, adamw)

    return step


def packed(base: nn.Module, size: int, shape: Shape, device: torch.device) -> Callable[[], None]:
    """A step of the first `size` runs together."""
    carrier = Carrier(copy.deepcopy(base).to(device), "text")
    models = [adapted(base, k, fold="never").to(device) for k in range(size)]
    for model in models:
        carrier.share(model)
    members = [Member(model) for model in models]
    batches = [batches_of(shape, k, device) for k in range(size)]
    adamws = [optimizer(model, lr=1e-3) for model in models]
    streams = [Stream() for _ in models]

    def step() -> None:
        answers = carrier.step(members, [next(own) for own in batches], streams)
        for model, adamw, answer in zip(models, adamws, answers, strict=True):
            for parameter, gradient in zip(answer.parameters, answer.gradients, strict=True):
                parameter.grad = gradient
            update(model, adamw)

    return step


def seconds(step: Callable[[], None], device: torch.device) -> float:
    """Of one step: CPU time, or wall-clock time of a device with its queue emptied."""
    if device.type == "cpu":
        begun = time.process_time()
        step()
        return time.process_time() - begun
    torch.cuda.synchronize()
    begun = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def compare_packs(shape: Shape, dropout: float, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """For each S: runs per hour packed and one after another, and the ratio with its interval."""
    base = network(dropout)
    # Of runs of one length two stand for all; else each has the very batches that it has in a pack.
    different = len(METHODS) if shape[1] == shape[2] else max(SIZES)
    lines = {f"single {k}": single(base, k, shape, device) for k in range(different)}
    lines |= {f"pack {size}": packed(base, size, shape, device) for size in SIZES}
    times: dict[str, list[float]] = {name: [] for name in lines}
    order = random.Random(0)
    for number in range(rounds + 2):
        for name in order.sample(list(lines), len(lines)):
            taken = seconds(lines[name], device)
            if number >= 2:  # the first two warm up
                times[name].append(taken)
    rows = []
    for size in SIZES:
        alone = [sum(times[f"single {k % different}"][i] for k in range(size)) for i in range(rounds)]
        ratio, low, high = median_interval([a / b for a, b in zip(alone, times[f"pack {size}"], strict=True)])
        per_hour = {
            name: 3600 * size / (STEPS * median_interval(values)[0])
            for name, values in (("one after another", alone), ("packed", times[f"pack {size}"]))
        }
        rows.append({"runs": size, "speedup": ratio, "low": low, "high": high, "runs per hour": per_hour})
    return rows


def _count_steps(shape: Shape, dropout: float, begin: Any, limit: float, found: Any) -> None:
    quiet_libraries()
    torch.set_num_threads(1)
    step = single(network(dropout), 0, shape, torch.device("cpu"))
    step()
    begin.wait()
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < limit:
        step()
        done += 1
    found.put(done / (time.perf_counter() - begun))


def compare_processes(shape: Shape, dropout: float, limit: float) -> list[dict[str, Any]]:
    """Runs per hour of 1 process and of one per core, each on one thread, for `limit` seconds."""
    context = multiprocessing.get_context("spawn")
    cores = len(os.sched_getaffinity(0))
    rows = []
    for count in sorted({1, cores}):
        begin, found = context.Barrier(count), context.Queue()
        workers = [
            context.Process(target=_count_steps, args=(shape, dropout, begin, limit, found)) for _ in range(count)
        ]
        for worker in workers:
            worker.start()
        rates = [found.get(timeout=300) for _ in workers]  # a dead worker is no reason to wait for ever
        for worker in workers:
            worker.join()
        rows.append({"processes": count, "runs per hour": 3600 * sum(rates) / STEPS})
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument(
        "--shapes", default="4x8,8x8-28,8x32,8x64,16x64", help="examples x tokens of a batch, with commas"
    )
    parser.add_argument("--process-seconds", type=float, default=8.0, help="0 leaves the processes out")
    given = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    device = torch.device(given.device)
    cases, before = [], os.getloadavg()
    for text in given.shapes.split(","):
        rows_of_it, lengths = text.split("x")
        shape = (int(rows_of_it), int(lengths.split("-")[0]), int(lengths.split("-")[-1]))
        rows = compare_packs(shape, given.dropout, given.rounds, device)
        by_processes = []
        if given.process_seconds and device.type == "cpu":
            by_processes = compare_processes(shape, given.dropout, given.process_seconds)
        cases.append(
            {
                "batch": f"{rows_of_it} x {lengths.replace('-', ' to ')}",
                "tokens": shape[0] * shape[2],
                "packs": rows,
                "processes": by_processes,
            }
        )
        print(f"{cases[-1]['batch']} tokens a run-step")
        for row in rows:
            rate = row["runs per hour"]
            print(
                f"  packs of {row['runs']}: {rate['packed']:8.1f} runs an hour, one after another "
                f"{rate['one after another']:8.1f}: x {row['speedup']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
            )
        for row in by_processes:
            print(f"  {row['processes']} processes: {row['runs per hour']:8.1f} runs an hour", flush=True)
    if given.out:
        record = {
            "what": "runs per hour, packed and not",
            "environment": environment().model_dump(),
            "load": os.getloadavg(),
            "load before": before,
            "cores": len(os.sched_getaffinity(0)),
            "steps": STEPS,
            "dropout": given.dropout,
            "cases": cases,
        }
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
