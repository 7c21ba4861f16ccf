"""A task of lm-evaluation-harness as the test of a run, with its result on each example."""

from __future__ import annotations

import contextlib
import io
import math
import numbers
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn

from tunewise.errors import SpecError, first_line
from tunewise.models.head import Head
from tunewise.spec import EvaluationSpec
from tunewise.spec.evaluation import HARNESS_PREFIX, is_harness_file
from tunewise.store.answers import Answer
from tunewise.tasks.contract import Task


@dataclass(frozen=True)
class HarnessScores:
    """Results of a task: its first metric is the main one. All keys begin with `lm_eval:TASK/`."""

    metrics: dict[str, float]
    lower_is_better: list[str]
    answers: list[Answer]

    @property
    def metric(self) -> str:
        return next(iter(self.metrics))


def check_harness(evaluation: EvaluationSpec, head: Head) -> None:
    """Load the task that is asked for, with its data. Raises `SpecError` where that fails, or where the model that has
    `head` is no language model."""
    if evaluation.harness is None:
        return
    if head.auto_class != "AutoModelForCausalLM":
        raise SpecError(f"eval {evaluation.harness!r} is for causal language models, not for {head.description}")
    _load(evaluation.harness)


def run_harness(model: nn.Module, task: Task, batch_size: int) -> HarnessScores:
    """Score a language model on the task of lm-evaluation-harness that `task.evaluation` names."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    harness: Any = task.evaluation.harness
    manager, name = _load(harness)
    tokenizer: Any = task.tokenizer  # type: ignore[attr-defined]
    training = model.training
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            results: Any = simple_evaluate(
                HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
                tasks=[harness.removeprefix(HARNESS_PREFIX)],
                task_manager=manager,
                limit=task.evaluation.eval_samples,
                bootstrap_iters=0,
                apply_chat_template=tokenizer.chat_template is not None,
            )
    finally:
        model.train(training)
    prefix = f"{HARNESS_PREFIX}{name}/"
    values = {
        prefix + key.removesuffix(",none"): float(value)
        for key, value in results["results"][name].items()
        if "," in key and "_stderr," not in key and _is_number(value)
    }
    if not values:
        raise SpecError(f"eval {harness!r}: its result has no metric that is a number")
    higher = results["higher_is_better"].get(name, {})
    lower = [key for key in values if higher.get(key.removeprefix(prefix).partition(",")[0]) is False]
    samples = [sample for rows in results["samples"].values() for sample in rows]
    return HarnessScores(values, lower, [_answer(sample, prefix) for sample in samples])


def _answer(sample: dict[str, Any], prefix: str) -> Answer:
    answers = sample["filtered_resps"]
    suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
    return Answer(
        prompt=str(sample["arguments"][0][0]),
        reference=str(sample["target"]),
        prediction=str(answers[0] if len(answers) == 1 else answers),
        scores={
            f"{prefix}{metric}{suffix}": float(sample[metric])
            for metric in sample["metrics"]
            if _is_number(sample.get(metric))
        },
    )


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


@lru_cache(maxsize=1)
def _load(harness: str) -> tuple[Any, str]:
    """The index of tasks, and the name of the task that is asked for."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise SpecError('--eval needs lm-evaluation-harness; run: pip install "tunewise[eval]"') from None
    name = harness.removeprefix(HARNESS_PREFIX)
    manager = TaskManager(include_defaults=not is_harness_file(harness))
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            loaded = manager.load([name])
    except Exception as error:  # noqa: BLE001 (whatever a task's file and its data lead to)
        raise SpecError(f"eval {harness!r}: {type(error).__name__}: {first_line(error)}") from None
    names = [*loaded["groups"], *loaded["tasks"]]
    return manager, names[0] if is_harness_file(harness) else name
