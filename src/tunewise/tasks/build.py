"""The tasks by name: how each is built, what it asks of a model, what its files hold, and which one data is for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from tunewise.errors import SpecError, nearest
from tunewise.locate import resolve
from tunewise.models.head import Head
from tunewise.spec import CompareSpec, DataSpec, ModelSpec, RunSpec, TaskName
from tunewise.tasks.causal import CausalLanguage, causal_stand_in
from tunewise.tasks.choice import MultipleChoice, choice_stand_in
from tunewise.tasks.classification import digest_of, load_classification
from tunewise.tasks.contract import StandIn, Task
from tunewise.tasks.generation import Generation
from tunewise.tasks.image import ImageClassification, image_data_digest, image_labels, image_stand_in
from tunewise.tasks.image_files import looks_like_images
from tunewise.tasks.regression import TextRegression, regression_stand_in
from tunewise.tasks.text import TextClassification, text_stand_in


@dataclass(frozen=True)
class TaskKind:
    """One kind of task. `labels` and `digest` need neither tokens nor pixels, so that a plan fails in a second."""

    build: Callable[[ModelSpec, DataSpec, int], Task]
    """From model, data and the most tokens of a text."""
    labels: Callable[[DataSpec], list[str]]
    """The classes, for the head's shape; none where there are no classes."""
    digest: Callable[[DataSpec], str]
    """sha256 over all files of the data."""
    stand_in: Callable[[ModelSpec, DataSpec, list[str]], StandIn]
    """Inputs and head where the data is not at hand; the labels come from a record."""


KINDS: dict[TaskName, TaskKind] = {
    "text": TaskKind(TextClassification, lambda data: load_classification(data).labels, digest_of, text_stand_in),
    "image": TaskKind(
        lambda model, data, _: ImageClassification(model, data), image_labels, image_data_digest, image_stand_in
    ),
    "causal": TaskKind(CausalLanguage, lambda data: [], digest_of, causal_stand_in),
    "generation": TaskKind(Generation, lambda data: [], digest_of, causal_stand_in),
    "regression": TaskKind(TextRegression, lambda data: [], digest_of, regression_stand_in),
    "choice": TaskKind(MultipleChoice, lambda data: [], digest_of, choice_stand_in),
}


def build_task(spec: RunSpec | CompareSpec) -> Task:
    """The data of a spec, read, split and made ready for its model; kept between runs, since it is the same for all
    of them. Raises `DataError`, `ModelError`, and `SpecError` for a main metric that the task does not have."""
    name = task_of(spec)
    task = _built(name, spec.model.model_dump_json(), spec.data.model_dump_json(), spec.training.max_length)
    if spec.metric is None:
        return task
    if spec.metric not in task.metrics:
        raise SpecError(f"metric {spec.metric!r} is none of the {name} task{nearest(spec.metric, task.metrics)}")
    task = copy.copy(task)  # shares the data
    task.metric = spec.metric
    return task


@lru_cache(maxsize=2)
def _built(task: TaskName, model: str, data: str, max_length: int) -> Task:
    spec = DataSpec.model_validate_json(data)
    built = KINDS[task].build(ModelSpec.model_validate_json(model), spec, max_length)
    if spec.notes:
        built.facts = built.facts.model_copy(update={"notes": [*spec.notes, *built.facts.notes]})
    return built


def task_of(spec: RunSpec | CompareSpec) -> TaskName:
    """The task that a spec names, or the one that its data is for by its form: images, answers to choose from, plain
    text without labels (a language model), else labelled text."""
    if spec.task is not None:
        return spec.task
    if spec.data.image is not None or spec.data.image_size is not None or looks_like_images(resolve(spec.data.path)):
        return "image"
    if spec.data.choices is not None:
        return "choice"
    return "causal" if spec.data.path.lower().removesuffix(".gz").endswith(".txt") else "text"


def head_of(task: TaskName, labels: list[str]) -> Head:
    """What a task asks of a model, as far as shapes go."""
    return Head("causal" if task == "generation" else task, tuple(labels))
