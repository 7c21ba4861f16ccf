"""What a method costs: step time, bytes kept for the backward, peak memory; on one batch, apart from any training run.

All methods and two reference lines are stepped in turn, in random order within each round, so that a slow spell of
the machine falls on all of them; ratios to the frozen floor are taken within rounds. The floor is the same model and
head with a trainable bias on the first adapted layer: gradients flow down to it, and nothing is adapted, so no
method on those layers can be faster. Bytes kept for the backward are exact and free of the machine's noise.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from tunewise.methods.attach import trainable_parameters
from tunewise.models.head import head_modules
from tunewise.models.layers import find_targets
from tunewise.spec import CompareSpec, MethodSpec, RunSpec
from tunewise.store.environment import device_name
from tunewise.store.records import CostRecord, CostReport, StepTime
from tunewise.tasks.build import build_task
from tunewise.tasks.contract import Task
from tunewise.training.build import build_model
from tunewise.training.optimizers import optimizer

FLOOR = "frozen floor"
FULL = "fft"
WARM_UP = 3


@dataclass
class Stepper:
    """One method, ready to be stepped on one batch."""

    label: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch: Mapping[str, Tensor]

    def step(self) -> None:
        """Forward, backward, update."""
        self.model(**self.batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def timed(self) -> float:
        """Seconds of one step, the device's queue emptied before and after."""
        _synchronize()
        start = time.perf_counter()
        self.step()
        _synchronize()
        return time.perf_counter() - start


def probe_costs(
    spec: CompareSpec,
    task: Task,
    *,
    seconds: float = 30.0,
    most_rounds: int = 30,
    check: Callable[[], None] = lambda: None,
) -> CostReport:
    """Costs of every method of a comparison, of the frozen floor, and of full fine-tuning as the other line.

    About `seconds` are spent on timing (at least 5 rounds). Peak memory is that of a fresh process a method on a
    CPU, the allocator's peak on a device.
    """
    batch = probe_batch(spec, task)
    runs = {m.label: r for m, r in zip(spec.methods, spec.runs()[: len(spec.methods)])}
    lines = dict(runs)
    if FULL not in lines:
        lines[FULL] = runs[spec.methods[0].label].model_copy(update={"method": MethodSpec(name="fft")})
    steppers = [stepper(label, run, task, batch) for label, run in lines.items()]
    steppers.insert(0, floor_stepper(spec, task, batch))
    memory = {s.label: _saved_bytes(s) for s in steppers}
    times = _interleaved(steppers, seconds, most_rounds, check)
    counts = {s.label: trainable_parameters(s.model) for s in steppers}
    del steppers
    peaks = _peaks(spec, [FLOOR, *lines], check)
    rows = []
    for label in [FLOOR, *lines]:
        median, low, high = median_interval(times[label])
        ratio, ratio_low, ratio_high = median_interval(
            [t / floor for t, floor in zip(times[label], times[FLOOR], strict=True)]
        )
        peak, base = peaks.get(label, (None, None))
        rows.append(
            CostRecord(
                method=label,
                step=StepTime(median=median, low=low, high=high, steps=len(times[label])),
                ratio_to_floor=ratio,
                ratio_low=ratio_low,
                ratio_high=ratio_high,
                samples_per_second=len(batch["labels"]) / median,
                saved_bytes=memory[label],
                peak_bytes=peak,
                base_bytes=base,
                trainable=counts[label],
                reference_line=label == FLOOR or label not in runs,
            )
        )
    return CostReport(
        device=device_name(),
        batch_size=len(batch["labels"]),
        max_length=spec.training.max_length,
        tokens=batch["input_ids"].numel() if "input_ids" in batch else 0,
        rows=rows,
    )


def probe_batch(spec: CompareSpec, task: Task) -> dict[str, Tensor]:
    """The batch that is stepped: the first training examples, one batch of them, on the device."""
    batch = task.collate(task.train[: spec.training.batch_size])
    return {key: value.to(_device()) for key, value in batch.items()}


def stepper(label: str, run: RunSpec, task: Task, batch: Mapping[str, Tensor]) -> Stepper:
    """A method as a run would train it."""
    model = build_model(run, task).to(_device()).train()
    adamw = optimizer(model, lr=run.learning_rate, weight_decay=run.training.weight_decay)
    return Stepper(label, model, adamw, batch)


def floor_stepper(spec: CompareSpec, task: Task, batch: Mapping[str, Tensor]) -> Stepper:
    """The frozen floor over the layers of the first method that has any (query and value where none has)."""
    model = task.load_model(0).to(_device()).train()
    wanted = next((m.targets for m in spec.methods if m.name not in ("fft", "head")), "qv")
    first = model.get_submodule(find_targets(model, wanted)[0].name)
    head = head_modules(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in head)
    weight: Tensor = first.weight  # type: ignore[assignment]
    if getattr(first, "bias", None) is None:
        first.bias = nn.Parameter(weight.new_zeros(find_targets(model, wanted)[0].out_features))
    first.bias.requires_grad_(True)
    trained = [p for p in model.parameters() if p.requires_grad]
    return Stepper(FLOOR, model, torch.optim.AdamW(trained, lr=1e-4, fused=True), batch)


def saved_for_backward(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Bytes of storage that autograd keeps between forward and backward of one batch; parameters, buffers and the
    batch itself, which are there anyway, not counted, and a storage that is kept twice counted once."""
    there = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers(), *batch.values()]}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch).loss  # the graph is alive until here, so no storage is given out twice
    del loss
    return sum(kept.values())


def median_interval(values: list[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Median and its distribution-free interval by order statistics (binomial; the whole range for few values)."""
    ordered = sorted(values)
    n = len(ordered)
    middle = ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2
    below, rank = 0.0, 0
    for k in range(n // 2):  # the largest rank whose two-sided miss stays within 1 - confidence
        below += math.comb(n, k) / 2**n
        if 2 * below > 1 - confidence:
            break
        rank = k
    return middle, ordered[rank], ordered[n - 1 - rank]


def _saved_bytes(one: Stepper) -> int:
    return saved_for_backward(one.model, one.batch)


def _interleaved(
    steppers: list[Stepper], seconds: float, most_rounds: int, check: Callable[[], None]
) -> dict[str, list[float]]:
    for one in steppers:
        for _ in range(WARM_UP):
            check()
            one.step()
    times: dict[str, list[float]] = {one.label: [] for one in steppers}
    order = random.Random(0)
    end = time.monotonic() + seconds
    for done in range(most_rounds):
        if done >= 5 and time.monotonic() > end:
            break
        for one in order.sample(steppers, len(steppers)):
            check()
            times[one.label].append(one.timed())
    return times


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peaks(spec: CompareSpec, labels: list[str], check: Callable[[], None]) -> dict[str, tuple[int, int]]:
    """Peak and base memory of each method, each in a fresh process forked from one that has the libraries loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tunewise.measures.cost"])
    threads = torch.get_num_threads()
    peaks: dict[str, tuple[int, int]] = {}
    for label in labels:
        check()
        receive, send = context.Pipe(duplex=False)
        child = context.Process(target=_measure_peak, args=(spec.model_dump_json(), label, threads, send), daemon=True)
        child.start()
        send.close()
        with contextlib.suppress(EOFError):  # a child that ran out of memory: no figure rather than a wrong one
            peaks[label] = receive.recv()
        child.join()
    return peaks


def _measure_peak(content: str, label: str, threads: int, send: Any) -> None:
    torch.set_num_threads(threads)
    spec = CompareSpec.model_validate_json(content)
    task = build_task(spec)
    batch = probe_batch(spec, task)
    if label == FLOOR:
        one = floor_stepper(spec, task, batch)
    else:
        run = next((r for r in spec.runs() if r.method.label == label), None)
        if run is None:
            run = spec.runs()[0].model_copy(update={"method": MethodSpec(name="fft")})
        one = stepper(label, run, task, batch)
    on_device = torch.cuda.is_available()
    if on_device:
        base = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        base = psutil.Process().memory_info().rss
        _reset_peak()
    for _ in range(WARM_UP):
        one.step()
    peak = torch.cuda.max_memory_allocated() if on_device else _peak_rss()
    send.send((max(peak, base), base))
    send.close()


def _reset_peak() -> None:
    """Linux: forget the peak of loading; elsewhere it stays in."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="ascii")


def _peak_rss() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
