"""The cost of a method on one batch: step time, bytes saved for the backward pass, peak memory.

Steps of all methods and of two reference lines are interleaved in random order within each round, so that slow phases
of the machine affect all of them; ratios to the frozen floor are taken within rounds. The floor is the same model and
head with a trainable bias on the first adapted layer: no method on those layers can be faster. Saved bytes are exact.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

from torch import Tensor

from tunewise.errors import is_out_of_memory
from tunewise.measures._device import device
from tunewise.measures.cost.counters import saved_for_backward
from tunewise.measures.cost.peak_memory import peak_memory
from tunewise.measures.cost.stepping import FLOOR, WARM_UP, Stepper, cost_lines, probe_batch, stepper
from tunewise.methods.attachment import trainable_parameters
from tunewise.spec import StudySpec
from tunewise.store.environment import device_name
from tunewise.store.records import CostRecord, CostReport, StepTime
from tunewise.tasks.contract import Task


def probe_costs(
    spec: StudySpec,
    task: Task,
    *,
    seconds: float = 30.0,
    most_rounds: int = 30,
    check: Callable[[], None] = lambda: None,
) -> CostReport:
    """Costs of every method, of the frozen floor, and of full fine-tuning; about `seconds` of timing."""
    batch = {key: value.to(device()) for key, value in probe_batch(spec, task).items()}
    labels = [FLOOR, *cost_lines(spec)]
    asked = {method.label for method in spec.methods}
    steppers, memory = _ready(labels, spec, task, batch)
    labels = [one.label for one in steppers]
    times = _interleaved(steppers, seconds, most_rounds, check)
    counts = {s.label: trainable_parameters(s.model) for s in steppers}
    del steppers
    peaks = peak_memory(spec, task, labels, check)
    rows = []
    for label in labels:
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
                reference_line=label not in asked,
            )
        )
    return CostReport(
        device=device_name(),
        batch_size=len(batch["labels"]),
        max_length=spec.training.max_length,
        tokens=batch["input_ids"].numel() if "input_ids" in batch else 0,
        batch=task.describe(batch),
        rows=rows,
    )


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


def _ready(
    labels: list[str], spec: StudySpec, task: Task, batch: dict[str, Tensor]
) -> tuple[list[Stepper], dict[str, int]]:
    """The lines that fit into memory together; a method that does not fit has no cost."""
    steppers, memory = [], {}
    for label in labels:
        try:
            one = stepper(label, spec, task, batch)
            memory[label] = saved_for_backward(one.model, one.batch)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or label == FLOOR:
                raise
            continue
        steppers.append(one)
    return steppers, memory


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
