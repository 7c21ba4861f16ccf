"""Tasks by name: the class of a task, the task that data is for, and a task built from a spec."""

from __future__ import annotations

import copy
from functools import lru_cache

from transformers import PretrainedConfig

from tunewise.errors import DataError, ModelError, SpecError, suggest_nearest
from tunewise.models.load import model_digest
from tunewise.registry import TASKS
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, StudySpec, TrainingSpec
from tunewise.tasks.contract import Task
from tunewise.tasks.own_metric import scoring_digest


def task_class(name: str) -> type[Task]:
    """The class that is registered by this name. Raises `SpecError` where there is none."""
    task: type[Task] = TASKS.get(name)
    return task


def detect_task(data: DataSpec) -> str:
    """The name of the task that the layout of the data shows; `text` where no task recognises it."""
    return next((name for name in TASKS.names() if task_class(name).recognises(data)), "text")


def detect_model_task(config: PretrainedConfig) -> str:
    """The name of the task that a transformers configuration is for; `text` where it doesn't say."""
    return next((name for name in TASKS.names() if task_class(name).recognises_model(config)), "text")


def build_task(spec: RunSpec | StudySpec) -> Task:
    """The data of a spec, read, split and encoded for its model; cached, since all runs of a study share it. Raises
    `DataError`, `ModelError`, and `SpecError` for a main metric that the task does not have."""
    name = spec.task or detect_task(spec.data)
    length = with_length(spec.training, task_class(name)).max_length
    task = _build(name, spec.model.model_dump_json(), spec.data.model_dump_json(), length)
    task.check_scores(spec.metric, spec.evaluation)
    if spec.evaluation.digest not in (None, scoring_digest(spec.metric, spec.evaluation)):
        raise SpecError("the file that scores the answers is not that which the run was made with; restore it")
    task = copy.copy(task)  # shares the data
    task.set_scores(spec.metric, spec.evaluation)
    if task.metric not in task.metrics:
        raise SpecError(
            f"metric {task.metric!r} is none of the {name} task{suggest_nearest(task.metric, task.metrics)}"
        )
    return task


@lru_cache(maxsize=2)
def _build(name: str, model: str, data: str, max_length: int) -> Task:
    kind, model_spec, data_spec = (
        task_class(name),
        ModelSpec.model_validate_json(model),
        DataSpec.model_validate_json(data),
    )
    check_digests(kind, model_spec, data_spec)
    return kind(model_spec, data_spec, max_length)


def with_targets(method: MethodSpec, kind: type[Task]) -> MethodSpec:
    """The method with the layers that the task adapts where none are given."""
    given = "targets" in method.model_fields_set
    return method if given else method.model_copy(update={"targets": kind.default_targets})


def with_length(training: TrainingSpec, kind: type[Task]) -> TrainingSpec:
    """The training with the length that the task cuts texts to where none is given."""
    given = "max_length" in training.model_fields_set
    return training if given else training.model_copy(update={"max_length": kind.default_length})


def check_digests(task: type[Task], model: ModelSpec, data: DataSpec | None = None) -> None:
    """Raise `ModelError` or `DataError` where the files are no longer those that a record's digests were taken of: a
    run is opened again on exactly its own model and data."""
    if model.digest is not None and model_digest(model.model_copy(update={"digest": None})) != model.digest:
        raise ModelError(f"model {model.path!r}: its files are not those that the run was made with; restore them")
    if data is not None and data.digest is not None and task.digest(data) != data.digest:
        raise DataError(f"{data.path}: the data is not that which the run was made with; restore it")
