"""A comparison: methods x seeds on one model and one data set, in the short forms that people write."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from tunewise.catalog import get_method
from tunewise.errors import SpecError, suggest_nearest
from tunewise.measures.catalog import default_measures, get_measure
from tunewise.spec.flag import Flag
from tunewise.spec.parts import DataSpec, Frozen, MethodSpec, ModelSpec, TaskName, TrainingSpec, TuningSpec
from tunewise.spec.reading import parse
from tunewise.spec.run import RunSpec, content_hash

_SHARED = ("rank", "alpha", "targets", "layers", "links", "restart_every", "a_law")
"""Fields of `MethodSpec` that may stand beside `methods`, for all of them."""


class CompareSpec(Frozen):
    """Methods x seeds on one model and one data set: what `tunewise compare` runs."""

    task: Annotated[TaskName | None, Flag(group="Model and data")] = Field(
        None, description="What is learned; recognised from the form of the data unless given."
    )
    model: ModelSpec
    data: DataSpec
    methods: Annotated[list[MethodSpec], Flag(group="Methods"), Field(min_length=1)] = Field(
        description="Names of methods, separated by commas: lora,cla,paca."
    )
    training: TrainingSpec = TrainingSpec()
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Flag(group="Training")] = Field(
        [0, 1, 2], description="How many seeds, or a list: 0,1,2."
    )
    reference: Annotated[str, Flag(group="Methods")] = Field(
        "lora", description="Method that the others are tested against."
    )
    metric: Annotated[str | None, Flag(group="Measurements")] = Field(
        None, description="Main metric; the task's own unless given."
    )
    measures: Annotated[list[str], Flag(group="Measurements")] = Field(
        default_factory=default_measures, description="Measures of every finished run, separated by commas, or none."
    )
    measure_settings: Annotated[dict[str, dict[str, Any]], Flag(group="Measurements")] = Field(
        default={}, description="Settings of one measure: --measure-settings.landscape.grid 25."
    )
    tuning: TuningSpec | None = Field(
        None, description="A learning-rate search first; a number means that many trials."
    )
    trajectory: Annotated[int, Flag(group="Measurements")] = Field(
        0, ge=0, description="Snapshots of the weights that each run keeps, for measures that follow the training."
    )
    trajectory_full: Annotated[bool, Flag(group="Measurements")] = Field(
        False, description="Snapshots of full fine-tuning too: the size of the model for each."
    )

    @field_validator("measure_settings")
    @classmethod
    def _checked_settings(cls, settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, content in settings.items():
            kind = get_measure(name).settings_class
            if kind is None:
                raise SpecError(f"measure {name!r} has nothing to set; leave it out of measure_settings")
            parse(kind, content, source=f"measure {name}")
        return settings

    @field_validator("measures", mode="before")
    @classmethod
    def _known_measures(cls, measures: Any) -> Any:
        """`none`, or names with commas, or a list."""
        if isinstance(measures, str):
            measures = [] if measures == "none" else [m.strip() for m in measures.split(",") if m.strip()]
        for name in measures if isinstance(measures, list) else []:
            get_measure(str(name))
        return measures

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, content: Any) -> Any:
        """`model: DIR` and `data: FILE` for mappings with a path; rank, alpha, targets at the top for all methods."""
        if not isinstance(content, dict):
            return content
        content = dict(content)
        for key in ("model", "data"):
            if isinstance(content.get(key), str):
                content[key] = {"path": content[key]}
        common = {key: content.pop(key) for key in _SHARED if key in content}
        methods = cls._names_are_enough(content.get("methods"))
        if common and isinstance(methods, list):
            methods = [{**common, **m} if isinstance(m, dict) else m for m in methods]
        content["methods"] = methods
        if isinstance(content.get("methods"), list):
            content["methods"] = _told_apart(content["methods"])
        return content

    @field_validator("methods", mode="before")
    @classmethod
    def _names_are_enough(cls, methods: Any) -> Any:
        if isinstance(methods, str):
            methods = [m.strip() for m in methods.split(",") if m.strip()]
        if isinstance(methods, list):
            return [{"name": m} if isinstance(m, str) else m for m in methods]
        return methods

    @field_validator("seeds", mode="before")
    @classmethod
    def _count_or_list(cls, seeds: Any) -> Any:
        if isinstance(seeds, str):
            try:
                numbers = [int(part) for part in seeds.split(",")]
            except ValueError:
                raise SpecError(f"seeds {seeds!r}: give how many (3), or a list (0,1,2)") from None
            seeds = numbers if "," in seeds else numbers[0]
        if isinstance(seeds, int) and not isinstance(seeds, bool) and seeds < 1:
            raise SpecError(f"seeds {seeds}: at least one is needed")
        return list(range(seeds)) if isinstance(seeds, int) and not isinstance(seeds, bool) else seeds

    @field_validator("tuning", mode="before")
    @classmethod
    def _trials_are_enough(cls, tuning: Any) -> Any:
        """`tuning: 4` for four trials a method, `tuning: 0` for no search."""
        if isinstance(tuning, int) and not isinstance(tuning, bool):
            tuning = {"trials": tuning}
        return None if isinstance(tuning, dict) and tuning.get("trials") == 0 else tuning

    @model_validator(mode="after")
    def _own_updates_where_linearised(self) -> CompareSpec:
        foreign = [m.name for m in self.methods if get_method(m.name).passed_through]
        if self.training.linearised and foreign:
            raise SpecError(f"{foreign[0]!r} can't be trained linearised: its update is PEFT's own; leave it out")
        return self

    @model_validator(mode="after")
    def _no_repeats(self) -> CompareSpec:
        if not self.seeds:
            raise SpecError("no seeds: give a count (--seeds 3) or a list")
        if len(set(self.seeds)) < len(self.seeds):
            raise SpecError(f"seeds {self.seeds} hold one twice; each run must be its own")
        if self.tuning and self.tuning.seed in self.seeds:
            raise SpecError(f"tuning.seed {self.tuning.seed} is one of the seeds; the search needs one of its own")
        labels = [m.label for m in self.methods]
        if len(set(labels)) < len(labels):
            twice = next(n for n in labels if labels.count(n) > 1)
            raise SpecError(f"method {twice!r} is listed twice; each row of a comparison must be its own")
        # Its default stands for "the first method" where there is no lora among them.
        if self.reference not in labels and self.reference != "lora":
            raise SpecError(
                f"reference {self.reference!r} is not among the methods{suggest_nearest(self.reference, labels)}"
            )
        return self

    def runs(self) -> list[RunSpec]:
        """All runs, seed by seed, so that a comparison cut short still has every method at the first seeds."""
        return [
            RunSpec(
                task=self.task or "text",
                model=self.model,
                data=self.data,
                method=method,
                training=self.training,
                seed=seed,
                metric=self.metric,
            )
            for seed in self.seeds
            for method in self.methods
        ]

    @property
    def id(self) -> str:
        """Hash over the ids of the runs: names the comparison's own folder."""
        return content_hash([r.id for r in self.runs()] + [self.reference])


def _told_apart(methods: list[Any]) -> list[Any]:
    """Rows of one name get a title that says in what they differ: 'lora r=4', 'lora r=16'."""
    words = {
        "rank": "r",
        "alpha": "alpha",
        "targets": "on",
        "layers": "blocks",
        "links": "links",
        "restart_every": "restarts every",
        "learning_rate": "lr",
    }
    titled = []
    for method in methods:
        kin = [
            m
            for m in methods
            if isinstance(m, dict) and isinstance(method, dict) and m.get("name") == method.get("name")
        ]
        differing = [key for key in words if len({str(m.get(key)) for m in kin}) > 1]
        if len(kin) > 1 and differing and not method.get("title"):
            parts = [f"{words[key]}={method[key]}" for key in differing if method.get(key) is not None]
            method = {**method, "title": " ".join([method["name"], *parts])}
        titled.append(method)
    return titled
