"""The plan of a study: everything that can be known, and everything that can be wrong, before the first run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tunewise.catalog import get_method
from tunewise.errors import ModelError, SpecError
from tunewise.hub import pinned
from tunewise.locate import absolute
from tunewise.models.head import Head
from tunewise.models.load import load_model, meta_model, model_digest, pinned_model
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, StudySpec, content_hash
from tunewise.store.folders import RunStore
from tunewise.store.records import DataFacts, ModelFacts
from tunewise.study.shapes import shape_of
from tunewise.tasks.build import build_task, detect_task, task_class, with_length, with_targets
from tunewise.tasks.contract import Task
from tunewise.tasks.own_metric import OwnMetric, scoring_digest
from tunewise.training.build import attach_method, chain_of, count_parameters, total_steps
from tunewise.training.events import Listener, Phase
from tunewise.training.harness import check_harness


@dataclass(frozen=True)
class PlannedRun:
    """One run, with the facts of its data and the counts of its model; no weights were read for them."""

    spec: RunSpec
    steps: int
    facts: ModelFacts
    data: DataFacts
    head: Head
    longest: int | None = None
    """Tokens of the longest training example, where inputs are tokens: no batch is wider."""

    @cached_property
    def id(self) -> str:
        return self.spec.id

    @cached_property
    def shape(self) -> str:
        """What decides the time of a step; cached, since estimates ask for it at every step of every run."""
        return shape_of(self.spec.model_dump(mode="json"))

    @property
    def task(self) -> type[Task]:
        """The class of its task."""
        return task_class(self.spec.task)

    @property
    def length(self) -> int:
        """Tokens of its widest batch."""
        limit = self.spec.training.max_length
        return limit if self.longest is None else min(limit, self.longest)

    @property
    def batch(self) -> int:
        """Examples of its largest batch."""
        return max(1, min(self.spec.training.batch_size, self.data.train))


@dataclass(frozen=True)
class Plan:
    """The runs of a study with digests filled in, and which of them are done already."""

    spec: StudySpec
    runs: list[PlannedRun]
    done: set[str]
    requested: int
    """Points of all products; settings that mean the same run are one run."""

    @cached_property
    def id(self) -> str:
        """Hash over the ids of the runs."""
        return content_hash(sorted(run.id for run in self.runs))

    @cached_property
    def todo(self) -> list[PlannedRun]:
        """Runs that are not done, each once."""
        return list({run.id: run for run in self.runs if run.id not in self.done}.values())

    @property
    def rows(self) -> list[PlannedRun]:
        """Of a comparison: the first run of each method."""
        return self.runs[: len(self.spec.methods)]

    @property
    def task(self) -> Task:
        """Of a comparison: the task that all runs share."""
        return build_task(self.runs[0].spec)

    def with_rates(self, rates: Mapping[str, float], store: RunStore) -> Plan:
        """The plan of a comparison with other learning rates, by label, and no search for rates before it."""
        methods = [
            m.model_copy(update={"learning_rate": rates.get(m.label, m.learning_rate)}) for m in self.spec.methods
        ]
        spec = self.spec.model_copy(update={"methods": methods, "tuning": None})
        runs = [replace(run, spec=changed) for run, changed in zip(self.runs, spec.runs(), strict=True)]
        return replace(self, spec=spec, runs=runs, done=find_done(runs, store))


def make_plan(spec: StudySpec, store: RunStore, listener: Listener | None = None) -> Plan:
    """Read configs and data, check every method on the shapes of its model, fill in the digests.

    Raises `SpecError`, `ModelError`, `DataError`: a rank above a layer, an unknown target, a chain of more links than
    steps, a bad file.
    """
    listener = listener or Listener()
    groups = spec.groups()
    checked = []
    for place, (task, runs) in enumerate(groups):  # shapes first: they fail within seconds, whichever model it is
        listener.check()
        listener.on(Phase("checking models", f"{place + 1} of {len(groups)}"))
        checked.append(_Source.of(task, runs))
    planned: list[PlannedRun] = []
    for place, source in enumerate(checked):
        listener.check()
        listener.on(Phase("reading data", f"{place + 1} of {len(groups)}"))
        planned += source.planned()
    if spec.is_comparison:
        first = planned[0].spec
        kind = task_class(first.task)
        spec = spec.model_copy(
            update={
                "task": first.task,
                "model": first.model,
                "data": first.data,
                "metric": first.metric,
                "evaluation": first.evaluation,
                "methods": [with_targets(method, kind) for method in spec.methods],
                "training": with_length(spec.training, kind),
            }
        )
    else:
        planned = list({run.id: run for run in planned}.values())
    return Plan(spec, planned, find_done(planned, store), sum(len(runs) for _, runs in groups))


def require_comparison(spec: StudySpec) -> None:
    """Raise `SpecError` for a study of several models, data sets or training settings."""
    if not spec.is_comparison:
        raise SpecError(
            "methods are compared on one model, one data set and one training setting; `tunewise sweep` runs several"
        )


def find_done(runs: Sequence[PlannedRun], store: RunStore) -> set[str]:
    """Ids of the runs that are finished."""
    return {run.id for run in runs if store.finished(run.id) is not None}


@dataclass(frozen=True)
class _Source:
    """Runs that share a model and data, their methods checked on the model's shapes."""

    task: str
    head: Head
    runs: list[RunSpec]
    facts: dict[str, ModelFacts]

    @classmethod
    def of(cls, task: str | None, runs: list[RunSpec]) -> _Source:
        if task is not None:
            for run in runs:
                task_class(task).check_scores(run.metric, run.evaluation)
        model, data = pinned_model(runs[0].model), pin_data(runs[0].data)
        task = task or detect_task(data)
        kind = task_class(task)
        head = kind.make_head(kind.read_labels(data), data)
        check_harness(runs[0].evaluation, head)
        runs = [
            run.model_copy(
                update={
                    "model": model,
                    "data": data,
                    "method": with_targets(run.method, kind),
                    "training": with_length(run.training, kind),
                }
            )
            for run in runs
        ]
        facts: dict[str, ModelFacts] = {}
        for run in runs:
            if (key := _shape(run.method)) not in facts:
                facts[key] = count_method(model, run.method, head)
        return cls(task, head, runs, facts)

    def planned(self) -> list[PlannedRun]:
        model, data = self.runs[0].model, self.runs[0].data
        changes = {
            "task": self.task,
            "model": model.model_copy(update={"path": absolute(model.path), "digest": model_digest(model)}),
            "data": data.model_copy(update={**_paths(data, absolute), "digest": task_class(self.task).digest(data)}),
        }
        planned = []
        tried: dict[str | None, RunSpec] = {}
        longest: dict[int, int | None] = {}
        for run in self.runs:
            spec = run.model_copy(update={**changes, **pin_scores(run)})
            spec = spec.model_copy(update={"default_rate": spec.find_default_rate()})
            task = build_task(spec)
            if tried.setdefault(spec.metric, spec) is spec:
                task.try_metric()
            if (limit := spec.training.max_length) not in longest:
                longest[limit] = task.longest()
            steps = total_steps(spec, task.facts.train)
            chain = chain_of(spec.method)
            if chain is not None:
                chain.restarts(steps, spec.training.steps_per_epoch(task.facts.train))
            facts = self.facts[_shape(spec.method)]
            planned.append(PlannedRun(spec, steps, facts, task.facts, self.head, longest[limit]))
        return planned


def pin_data(data: DataSpec) -> DataSpec:
    """Data of a hub by its commit, so that the records say which files were used."""
    return data.model_copy(update=_paths(data, pinned))


def _paths(data: DataSpec, change: Callable[[str], str]) -> dict[str, str]:
    """The paths of the data, each changed."""
    paths = {key: getattr(data, key) for key in ("path", "validation", "test")}
    return {key: change(path) for key, path in paths.items() if path is not None}


def pin_scores(run: RunSpec) -> dict[str, object]:
    """The metric and the settings of scores with absolute paths, and the digest of the files that they name."""
    evaluation, own = run.evaluation, OwnMetric.parse(run.metric)
    changes: dict[str, str | None] = {"digest": scoring_digest(run.metric, evaluation)}
    if evaluation.harness is not None:
        changes["harness"] = absolute(evaluation.harness)
    return {"metric": own.path if own else run.metric, "evaluation": evaluation.model_copy(update=changes)}


def count_method(model_spec: ModelSpec, method: MethodSpec, head: Head) -> ModelFacts:
    """What a method trains on a model, from shapes alone. Raises `ModelError` where it does not fit them."""
    # LoRA-One has LoRA's factors; its start needs a gradient, which shapes alone don't give.
    stand_in = method.model_copy(update={"name": "lora"}) if get_method(method.name).start == "gradient" else method
    options = {"peft_options": {"total_step": 1000}} if method.name == "peft:adalora" else {}
    if method.name in ("peft:pissa", "peft:olora"):  # LoRA's factors again; their start needs the weights
        stand_in = method.model_copy(update={"name": "peft:lora"})
    try:
        model = attach_method(meta_model(model_spec, head), stand_in, seed=0, **options)
    except ModelError:
        if not get_method(method.name).passed_through:
            raise
        # Some of PEFT's methods can't be attached to a model without weights; a real fault is raised again here.
        model = attach_method(load_model(model_spec, head, seed=0), stand_in, seed=0, **options)
    return count_parameters(model)


def _shape(method: MethodSpec) -> str:
    """What of a method decides its counts: rates and scales don't."""
    return method.model_dump_json(exclude={"learning_rate", "alpha", "title"})
