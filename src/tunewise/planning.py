"""The plan of a comparison: everything that can be known, and everything that can be wrong, before training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tunewise.catalog import get_method
from tunewise.errors import ModelError, SpecError
from tunewise.hub import pinned
from tunewise.models.head import Head
from tunewise.models.load import load_model, meta_model, model_digest, pinned_model
from tunewise.spec import MethodSpec, ModelSpec, RunSpec, StudySpec
from tunewise.store.folders import RunStore
from tunewise.store.records import DataFacts, ModelFacts
from tunewise.tasks.build import build_task, detect_task, task_class
from tunewise.tasks.contract import Task
from tunewise.training.build import attach_method, chain_of, count_parameters, total_steps
from tunewise.training.trajectory import SnapshotOptions, lacks_snapshots


@dataclass(frozen=True)
class PlannedMethod:
    """One method of the plan; counts come from the meta device, so no weights were read."""

    method: MethodSpec
    learning_rate: float
    facts: ModelFacts


@dataclass(frozen=True)
class Plan:
    """A comparison with its digests filled in, its runs, and which of them are done already."""

    spec: StudySpec
    task: Task
    runs: list[RunSpec]
    done: set[str]
    methods: list[PlannedMethod]
    steps: int
    trajectory: SnapshotOptions | None

    @property
    def data(self) -> DataFacts:
        return self.task.facts


def make_plan(spec: StudySpec, store: RunStore) -> Plan:
    """Read config and data, check every method on the model's shapes, fill in the digests. A finished run without
    the snapshots that are asked for counts as not done.

    Raises `SpecError`, `ModelError`, `DataError`: a rank above a layer, an unknown target, a bad file.
    """
    if not spec.is_comparison:
        raise SpecError(
            "methods are compared on one model, one data set and one training setting; `tunewise sweep` runs several"
        )
    # Shapes first: they need the number of classes, but neither weights nor tokens, and fail in a second.
    name = spec.task or detect_task(spec.data)
    kind = task_class(name)
    head = kind.make_head(kind.read_labels(spec.data))
    counted = [_count(spec, method, head) for method in spec.methods]
    spec = spec.model_copy(
        update={
            "task": name,
            "model": spec.model.model_copy(update={"digest": model_digest(spec.model)}),
            "data": spec.data.model_copy(update={"digest": kind.digest(spec.data)}),
        }
    )
    task = build_task(spec)
    spec = with_commits(spec)
    runs = spec.runs()
    steps = total_steps(runs[0], len(task.train))
    for run in runs[: len(spec.methods)]:
        chain = chain_of(run.method)
        if chain is not None:
            chain.restarts(steps, steps // spec.training.epochs)  # raises where the run is too short for its links
    keep = SnapshotOptions(spec.trajectory, full=spec.trajectory_full) if spec.trajectory else None
    return Plan(spec, task, runs, _done(runs, store, keep), counted, steps, keep)


def with_commits(spec: StudySpec) -> StudySpec:
    """What came from a hub is named by its commit, so that the records say which files it was."""
    paths = {key: path for key in ("path", "validation", "test") if (path := getattr(spec.data, key)) is not None}
    data = spec.data.model_copy(update={key: pinned(path) for key, path in paths.items()})
    return spec.model_copy(update={"model": pinned_model(spec.model), "data": data})


def with_rates(plan: Plan, rates: Mapping[str, float], store: RunStore) -> Plan:
    """The plan with other learning rates, by label. Its spec says what is run, so there is nothing left to tune."""
    methods = [m.model_copy(update={"learning_rate": rates.get(m.label, m.learning_rate)}) for m in plan.spec.methods]
    spec = plan.spec.model_copy(update={"methods": methods, "tuning": None})
    runs = spec.runs()
    done = _done(runs, store, plan.trajectory)
    planned = [
        replace(known, method=method, learning_rate=rates.get(method.label, known.learning_rate))
        for known, method in zip(plan.methods, methods, strict=True)
    ]
    return replace(plan, spec=spec, runs=runs, done=done, methods=planned)


def _done(runs: list[RunSpec], store: RunStore, keep: SnapshotOptions | None) -> set[str]:
    """Which runs are finished, with the snapshots that are asked for."""
    finished = {run.id: record for run in runs if (record := store.finished(run.id)) is not None}
    return {i for i, record in finished.items() if not lacks_snapshots(record, store.folder(i), keep)}


def _count(spec: StudySpec, method: MethodSpec, head: Head) -> PlannedMethod:
    rate = spec.model_copy(update={"methods": [method]}).runs()[0].learning_rate
    return PlannedMethod(method, rate, facts_of_method(spec.model, method, head))


def facts_of_method(model_spec: ModelSpec, method: MethodSpec, head: Head) -> ModelFacts:
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
        # Some of PEFT's methods can't be put on a model without weights; a real fault comes again here.
        model = attach_method(load_model(model_spec, head, seed=0), stand_in, seed=0, **options)
    return count_parameters(model)
