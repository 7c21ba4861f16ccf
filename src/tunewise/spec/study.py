"""A study: methods x seeds on a model and a data set, and any other setting as a list, in the forms people write.

    model: roberta-base
    data: {path: mrpc.csv, train_size: [200, 1000]}
    methods: [lora, {name: c3la, rank: 4}]
    rank: [4, 8, 16]
    alpha: [r/2, r, 2r]
    learning_rate: [1e-5, 1e-4.5, 1e-4]
    seeds: 3
    training: {epochs: 20, batch_size: 32}
    points:
      - {methods: fft, learning_rate: 1e-5}

Every list is an axis, and the runs are the product of all axes. A key that means nothing to a method (links to one
without a chain, rank to full fine-tuning) is left out for it. Each point is a product of its own: what it does not say
is taken from above.
"""

from __future__ import annotations

import itertools
from typing import Annotated, ClassVar

from pydantic import Field, field_validator, model_validator

from tunewise.catalog import get_method
from tunewise.errors import SpecError, suggest_nearest
from tunewise.registry import DEFAULT_MEASURES, MEASURES
from tunewise.spec.evaluation import EvaluationSpec
from tunewise.spec.expand import METHOD_KEYS, expand_study
from tunewise.spec.parts import DataSpec, Flag, Frozen, MethodSpec, ModelSpec, TaskName, TrainingSpec, TuningSpec
from tunewise.spec.reading import parse
from tunewise.spec.run import RunSpec, content_hash

_TUNING_SEED = 1000


class Grid(Frozen):
    """All values of the parts of a study that are lists; empty where a part has one value."""

    model: list[ModelSpec] = []
    data: list[DataSpec] = []
    training: list[TrainingSpec] = []


class StudySpec(Frozen):
    """Methods x seeds on one model and one data set, and every other list as a further axis."""

    short_keys: ClassVar[tuple[str, ...]] = METHOD_KEYS

    task: Annotated[TaskName | None, Flag(group="Model and data")] = Field(
        None, description="What is learned; recognised from the form of the data unless given."
    )
    model: ModelSpec
    data: DataSpec
    methods: Annotated[list[MethodSpec], Flag(group="Methods")] = Field(
        default=[], validate_default=True, description="Names of methods, separated by commas: lora,cla,paca."
    )
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Flag(group="Training")] = Field(
        [0, 1, 2], description="How many seeds, or a list: 0,1,2."
    )
    grid: Annotated[Grid, Flag(hidden=True)] = Field(
        default_factory=Grid, description="Models, data sets and training settings where there are several."
    )
    points: Annotated[list[StudySpec], Flag(hidden=True)] = Field(
        [], description="Further products of runs; what a point does not say is taken from above."
    )
    reference: Annotated[str, Flag(group="Methods")] = Field(
        "lora", description="Method that the others are tested against."
    )
    metric: Annotated[str | None, Flag(group="Measurements")] = Field(
        None, description="Main metric; the task's own unless given. Of generated answers also FILE.py:FUNCTION."
    )
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    measures: Annotated[list[str], Flag(group="Measurements")] = Field(
        list(DEFAULT_MEASURES), description="Measures of every finished run, separated by commas, or none."
    )
    measure_settings: Annotated[dict[str, dict[str, object]], Flag(group="Measurements")] = Field(
        default={}, description="Settings of one measure: --measure-settings.landscape.grid 25."
    )
    tuning: TuningSpec | None = Field(
        None, description="A learning-rate search first; a number means that many trials."
    )

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, content: object) -> object:
        return expand_study(content) if isinstance(content, dict) else content

    @field_validator("points", mode="before")
    @classmethod
    def _parse_points(cls, points: object) -> object:
        if not isinstance(points, list):
            return points
        return [parse(StudySpec, point, source=f"points.{place}") for place, point in enumerate(points)]

    @field_validator("measure_settings")
    @classmethod
    def _check_settings(cls, settings: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
        for name, content in settings.items():
            MEASURES.get(name).parse_settings(content)
        return settings

    @field_validator("measures", mode="before")
    @classmethod
    def _split_measures(cls, measures: object) -> object:
        """`none`, or names with commas, or a list."""
        if isinstance(measures, str):
            measures = [] if measures == "none" else [m.strip() for m in measures.split(",") if m.strip()]
        for name in measures if isinstance(measures, list) else []:
            MEASURES.check(str(name))
        return measures

    @field_validator("seeds", mode="before")
    @classmethod
    def _count_or_list(cls, seeds: object) -> object:
        said = seeds
        if isinstance(seeds, str) and all(part.strip().isdigit() for part in seeds.split(",")):
            numbers = [int(part) for part in seeds.split(",")]
            seeds = numbers if "," in seeds else numbers[0]
        if isinstance(seeds, int) and not isinstance(seeds, bool):
            seeds = list(range(seeds))
        if not isinstance(seeds, list) or not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
            raise SpecError(f"seeds: {said}: give how many (1 or more; 3 are the seeds 0, 1, 2), or a list: [0, 1, 2]")
        if len(set(seeds)) < len(seeds):
            raise SpecError(f"seeds {seeds} hold one twice; each run must be its own")
        return seeds

    @field_validator("tuning", mode="before")
    @classmethod
    def _count_of_trials(cls, tuning: object) -> object:
        """`tuning: 4` for four trials a method, `tuning: 0` for no search."""
        if isinstance(tuning, int) and not isinstance(tuning, bool):
            tuning = {"trials": tuning}
        return None if isinstance(tuning, dict) and tuning.get("trials") == 0 else tuning

    @model_validator(mode="after")
    def _check_methods(self) -> StudySpec:
        labels = [method.label for method in self.methods]
        if not labels and not self.points:
            raise SpecError("no methods: give methods: [lora, cla]")
        if len(set(labels)) < len(labels):
            repeated = next(label for label in labels if labels.count(label) > 1)
            raise SpecError(f"method {repeated!r} is listed twice; each row must be its own")
        # The default stands for the first method where there is no lora among them.
        if self.reference not in labels and self.reference != "lora":
            raise SpecError(
                f"reference {self.reference!r} is not among the methods{suggest_nearest(self.reference, labels)}"
            )
        foreign = [method.name for method in self.methods if get_method(method.name).passed_through]
        if foreign and any(training.linearised for training in self.grid.training or [self.training]):
            raise SpecError(f"{foreign[0]!r} can't be trained linearised: its update is PEFT's own; leave it out")
        return self

    @property
    def is_comparison(self) -> bool:
        """Whether there is one model, one data set and one training setting, so that methods can be compared."""
        return not self.points and not (self.grid.model or self.grid.data or self.grid.training)

    @property
    def tuning_seed(self) -> int:
        """Seed of the search for learning rates; no run of the study has it."""
        return _TUNING_SEED if _TUNING_SEED not in self.seeds else max(self.seeds) + 1

    @property
    def has_default_rates(self) -> bool:
        """Whether the learning rate of at least one method is not given."""
        return any(method.learning_rate is None for method in self.methods) and self.training.learning_rate is None

    def with_default_search(self) -> StudySpec:
        """A comparison that says nothing of a search gets the default one where a learning rate is missing."""
        if "tuning" in self.model_fields_set or not self.is_comparison or not self.has_default_rates:
            return self
        return self.model_copy(update={"tuning": TuningSpec()})

    def runs(self) -> list[RunSpec]:
        """All runs, group by group, seed by seed. Outside a comparison, settings that mean the same run are one run."""
        runs = [run for _, group in self.groups() for run in group]
        if self.is_comparison:
            return runs
        unique: dict[str, RunSpec] = {}
        for run in runs:
            unique.setdefault(run.id, run)
        return list(unique.values())

    def groups(self) -> list[tuple[TaskName | None, list[RunSpec]]]:
        """The runs that share model, data and text length, with the task where the spec names it; seed by seed, so that
        a study that is cut short has every row at the first seeds."""
        groups: dict[str, tuple[TaskName | None, list[RunSpec]]] = {}
        for part in (self, *self.points):
            for run in part._product():
                key = f"{part.task} {run.model} {run.data} {run.training.max_length}"
                groups.setdefault(key, (part.task, []))[1].append(run)
        return [(task, sorted(runs, key=lambda run: run.seed)) for task, runs in groups.values()]

    def _product(self) -> list[RunSpec]:
        models, datasets = self.grid.model or [self.model], self.grid.data or [self.data]
        trainings = self.grid.training or [self.training]
        return [
            RunSpec(
                task=self.task or "text",
                model=model,
                data=data,
                method=method,
                training=training,
                seed=seed,
                metric=self.metric,
                evaluation=self.evaluation,
            )
            for model, data, training, seed, method in itertools.product(
                models, datasets, trainings, self.seeds, self.methods
            )
        ]

    @property
    def id(self) -> str:
        """Hash over the ids of the runs: names the folder of the comparison."""
        return content_hash([run.id for run in self.runs()] + [self.reference])
