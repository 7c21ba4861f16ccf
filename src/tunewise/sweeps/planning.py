"""The plan of a sweep: everything that can be known, and everything that can be wrong, before the first run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tunewise.models.head import Head
from tunewise.models.load import model_digest
from tunewise.planning import facts_of_method, with_commits
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, StudySpec, content_hash
from tunewise.store.folders import RunStore
from tunewise.store.records import DataFacts, ModelFacts
from tunewise.sweeps.shapes import shape_of
from tunewise.tasks.build import build_task, detect_task, task_class
from tunewise.training.build import chain_of, total_steps
from tunewise.training.events import Listener, Phase


@dataclass(frozen=True)
class PlannedRun:
    """One run, with what its data and model's shapes say of it."""

    spec: RunSpec
    steps: int
    facts: ModelFacts
    data: DataFacts
    head: Head
    longest: int | None = None
    """Of its training examples, in tokens; None of images."""

    @cached_property
    def id(self) -> str:
        return self.spec.id

    @cached_property
    def content(self) -> dict[str, Any]:
        """The specification as plain data."""
        return self.spec.model_dump(mode="json")

    @cached_property
    def shape(self) -> str:
        """What decides the time of a step: asked for at every step, of every run that is left."""
        return shape_of(self.content)


@dataclass(frozen=True)
class SweepPlan:
    """A sweep's runs, each once, digests filled in; and which of them are done already."""

    spec: StudySpec
    runs: list[PlannedRun]
    done: set[str]
    asked: int
    """Points of the product and of the list; those that came to the same run are one run."""

    @property
    def id(self) -> str:
        """Hash over the ids of the runs: names the sweep's own folder."""
        return content_hash(sorted(run.id for run in self.runs))

    @cached_property
    def todo(self) -> list[PlannedRun]:
        return [run for run in self.runs if run.id not in self.done]


def plan_sweep(spec: StudySpec, store: RunStore, listener: Listener | None = None) -> SweepPlan:
    """Read configs and data, check every method on the shapes of its model, fill in the digests.

    Raises `SpecError`, `ModelError`, `DataError`: a rank above a layer, an unknown target, a chain of more links than
    steps, a bad file.
    """
    listener = listener or Listener()
    asked = spec.runs()
    groups: dict[str, list[RunSpec]] = {}
    for run in asked:
        groups.setdefault(run.model.model_dump_json() + run.data.model_dump_json(), []).append(run)
    # Shapes first: they need neither weights nor tokens, and fail in seconds, whichever model it is.
    checked = []
    for place, group in enumerate(groups.values()):
        listener.check()
        listener.on(Phase("checking models", f"{place + 1} of {len(groups)}"))
        checked.append(_on_shapes(spec, group))
    planned: dict[str, PlannedRun] = {}
    for place, (task, head, facts, group) in enumerate(checked):
        listener.check()
        listener.on(Phase("reading data", f"{place + 1} of {len(groups)}"))
        digests = _with_digests(group[0].model, group[0].data, task)
        lengths: dict[int, int | None] = {}
        for run in group:
            run = run.model_copy(update={"task": task, **digests})
            built = build_task(run)
            data = built.facts
            if run.training.max_length not in lengths:
                lengths[run.training.max_length] = built.longest()
            steps = total_steps(run, data.train)
            chain = chain_of(run.method)
            if chain is not None:
                chain.restarts(steps, steps // run.training.epochs)  # raises where it is too short for its links
            planned[run.id] = PlannedRun(
                run, steps, facts[_shape(run.method)], data, head, lengths[run.training.max_length]
            )
    done = {run_id for run_id in planned if store.finished(run_id) is not None}
    return SweepPlan(spec, list(planned.values()), done, len(asked))


def _on_shapes(spec: StudySpec, group: list[RunSpec]) -> tuple[str, Head, dict[str, ModelFacts], list[RunSpec]]:
    model, data = group[0].model, group[0].data
    whole = with_commits(StudySpec(task=spec.task, model=model, data=data, methods=[group[0].method]))
    model, data, task = whole.model, whole.data, spec.task or detect_task(whole.data)
    head = task_class(task).make_head(task_class(task).read_labels(data))
    facts: dict[str, ModelFacts] = {}
    for run in group:
        if (key := _shape(run.method)) not in facts:
            facts[key] = facts_of_method(model, run.method, head)
    return task, head, facts, [run.model_copy(update={"model": model, "data": data}) for run in group]


def _with_digests(model: ModelSpec, data: DataSpec, task: str) -> dict[str, ModelSpec | DataSpec]:
    return {
        "model": model.model_copy(update={"digest": model_digest(model)}),
        "data": data.model_copy(update={"digest": task_class(task).digest(data)}),
    }


def _shape(method: MethodSpec) -> str:
    """What of a method decides its counts: rates and scales don't."""
    return method.model_dump_json(exclude={"learning_rate", "alpha", "title"})
