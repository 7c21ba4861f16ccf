"""What comes before the first step: attaching a method to an 8 B model, and LoRA-One's start from a gradient.

    python benchmarks/start_up.py --out benchmarks/results/start_up.json

Attaching is timed on the meta device, where nothing is computed or stored: what is left is the host's work, of stock
PEFT too. Beside it, the bytes that attaching makes on a real network, over the bytes of its weights. LoRA-One's start
runs over 64 examples of MiniLM's shape and is given in training steps of `lora` on a batch of the same size.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from costs.networks import batch_of, build
from peft import LoraConfig, TaskType, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import tunewise
from tunewise.quiet import quiet_libraries
from tunewise.store.environment import environment
from tunewise.training.optimizers import optimizer

METHODS = ("lora", "asym", "cola", "rac", "cla", "r-cla", "c3la", "paca", "d-paca")
EXAMPLES, ROWS, TOKENS = 64, 8, 64


def llama_8b() -> Any:
    """Llama-3-8B's shape without numbers."""
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median CPU time of the process."""
    taken = []
    for _ in range(repeats):
        gc.collect()
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def attach_times(targets: str, repeats: int) -> dict[str, float]:
    """Seconds by method on fresh 8 B models; stock PEFT's beside them."""
    layers = ["q_proj", "v_proj"] if targets == "qv" else "all-linear"
    stock = LoraConfig(r=16, lora_alpha=32, target_modules=layers, task_type=TaskType.CAUSAL_LM)
    makers: dict[str, Callable[[Any], object]] = {"PEFT LoRA": lambda m: get_peft_model(m, stock)}
    for name in METHODS:
        makers[name] = partial(tunewise.attach, method=name, rank=16, targets=targets)
    found = {}
    for label, make in makers.items():
        waiting = [llama_8b() for _ in range(repeats)]
        found[label] = seconds(partial(_next, make, waiting), repeats)
    return found


def _next(make: Callable[[Any], object], waiting: list[Any]) -> object:
    return make(waiting.pop())


def bytes_made(name: str) -> float:
    """Bytes of all tensors after attaching less those before, over those before: factors, and no copy of a weight."""
    model = build("minilm", dtype=torch.float32, device=torch.device("cpu"))
    before = _held()
    adapted = tunewise.attach(model, name, rank=16, targets="all-linear")
    more = _held() - before
    del adapted
    return more / sum(p.numel() * p.element_size() for p in model.parameters())


def _held() -> int:
    gc.collect()
    tensors = [t for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def one_step_start(repeats: int) -> dict[str, float]:
    """Seconds of LoRA-One's start (2502.01235) over EXAMPLES examples, and how many steps of `lora` that is."""
    device = torch.device("cpu")
    batch = batch_of("minilm", dtype=torch.float32, device=device, rows=ROWS, tokens=TOKENS)
    model = tunewise.attach(build("minilm", dtype=torch.float32, device=device), "lora", rank=16, targets="qv")
    adamw = optimizer(model, lr=1e-4)

    def step() -> None:
        model(**batch).loss.backward()
        adamw.step()
        adamw.zero_grad()

    def start() -> None:
        bare = build("minilm", dtype=torch.float32, device=device)
        tunewise.attach(bare, "lora-one", rank=16, targets="qv", batches=[batch] * (EXAMPLES // ROWS))

    step()
    one = seconds(step, 4 * repeats)
    whole = seconds(start, repeats) - seconds(lambda: build("minilm", dtype=torch.float32, device=device), repeats)
    return {"seconds": whole, "steps": whole / one}


def main() -> None:
    """Command line."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    flags.add_argument("--repeats", type=int, default=3)
    flags.add_argument("--out", type=Path, help="JSON")
    given = flags.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    here = environment()
    attach_times("qv", 1)  # the first of a process pays for imports
    found = {
        "what": "what comes before the first step",
        "environment": {"device": here.device, "platform": here.platform, "versions": here.versions},
        "load": os.getloadavg(),
        "attach": {targets: attach_times(targets, given.repeats) for targets in ("qv", "all-linear")},
        "bytes made": {name: bytes_made(name) for name in METHODS},
        "one-step start": one_step_start(given.repeats),
    }
    text = json.dumps(found, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
