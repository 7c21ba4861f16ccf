"""What is asked for: specs of one run and of a comparison. Plain data, checked before torch is imported.

A `RunSpec` names everything that decides a run's result, and its `id` is the hash of just that: where a file
lies is left out, what is in it (the digests) is in. A `CompareSpec` is what a command line or a YAML file says;
`CompareSpec.runs()` spreads it over methods and seeds.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tunewise.errors import SpecError, nearest
from tunewise.measures.catalog import default_measures, get_measure
from tunewise.methods.catalog import ALaw, get_method

# Bumped when the same spec would give another result, so that old folders are not taken for new ones.
PROTOCOL = 1

Spec = TypeVar("Spec", bound=BaseModel)

TaskName = Literal["text", "image", "causal", "generation", "regression", "choice"]
"""What is learned: labels of texts or text pairs, labels of images, the next token, completions that are generated to
be scored, numbers, the right answer."""

# Keys of `DataSpec` that mean nothing to a task, and so don't enter a run's hash.
_UNUSED: dict[str, tuple[str, ...]] = {
    "image": ("text", "text_pair", "choices"),
    "causal": ("text_pair", "image", "image_size", "choices"),
    "generation": ("text_pair", "image", "image_size", "choices"),
    "choice": ("text_pair", "image", "image_size"),
}


class Frozen(BaseModel):
    """Immutable, unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSpec(Frozen):
    """A pretrained model: a folder, a hub id, or `package:MODULE/inner/path` (a zip is unpacked once)."""

    path: str
    revision: str | None = None
    trust_remote_code: bool = False
    digest: str | None = Field(None, description="sha256 over the files of the model; filled in by the plan")


class DataSpec(Frozen):
    """Labelled text or text pairs: csv, tsv, jsonl, parquet (each also .gz), a folder of class folders of .txt
    files, or one of these inside an installed package (`package:MODULE/inner/path`) or a hub's data set
    (`hub:OWNER/NAME[@REVISION]/inner/path`). Images: a folder of class folders, parquet with the images in it, or csv,
    tsv, jsonl with their paths."""

    path: str
    validation: str | None = None
    test: str | None = None
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    image: str | None = Field(None, description="column of images or of their paths; found by its name unless given")
    image_size: int | None = Field(None, ge=8, description="pixels a side; the model's own unless given")
    choices: str | None = Field(None, description="column of lists of answers, or columns with commas: multiple choice")
    encoding: str = Field("utf-8", description="one encoding, or several tried in turn: 'utf-8,latin-1'")
    train_size: int | None = Field(None, ge=2, description="keep this many training examples (fixed split seed)")
    validation_size: int | None = Field(None, ge=1)
    test_size: int | None = Field(None, ge=1)
    validation_fraction: float = Field(0.15, gt=0, lt=0.9, description="cut from train where no file is given")
    test_fraction: float = Field(0.2, gt=0, lt=0.9, description="cut from train where no file is given")
    split_seed: int = 0
    digest: str | None = Field(None, description="sha256 over the files; filled in by the plan")
    notes: list[str] = Field(default=[], description="how the files came to be: for records, no part of a run's id")

    def content(self, task: str) -> dict[str, Any]:
        """What decides the examples of `task` and how they are shown to a model: what means nothing to it left out."""
        unused = _UNUSED.get(task, ("image", "image_size", "choices"))
        return self.model_dump(mode="json", exclude={*unused, "notes"})


class MethodSpec(Frozen):
    """One method of the catalog, with its rank and where it goes."""

    name: str
    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0, description="scale is alpha / rank; 2 x rank unless given")
    targets: str | list[str] = "qv"
    layers: str | list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="blocks that targets are looked for in: 'last 2', or numbers from 0; all unless given"
    )
    links: int | None = Field(None, ge=1, description="chains: number of links; the catalog's own unless given")
    restart_every: int | None = Field(None, ge=1, description="chains: epochs that a link lasts, instead of links")
    a_law: ALaw | None = Field(None, description="law of a random A; the catalog's own unless given")
    learning_rate: float | None = Field(None, gt=0)
    weight_decay: float | None = Field(None, ge=0, description="the comparison's unless given")
    title: str | None = Field(None, description="in tables; made up where two rows have one name")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        get_method(name)
        return name

    @model_validator(mode="after")
    def _only_chains_have_links(self) -> MethodSpec:
        for key in ("links", "restart_every"):
            if getattr(self, key) is not None and get_method(self.name).chain is None:
                raise SpecError(f"method {self.name!r} has no chain, so {key!r} means nothing to it; leave it out")
        if self.links is not None and self.restart_every is not None:
            raise SpecError("links and restart_every both say when a chain restarts; give one of them")
        return self

    @model_validator(mode="after")
    def _only_a_random_factor_has_a_law(self) -> MethodSpec:
        if self.a_law is not None and get_method(self.name).where != "random":
            raise SpecError(f"method {self.name!r} has no random A, so 'a_law' means nothing to it; leave it out")
        return self

    @field_validator("layers", mode="before")
    @classmethod
    def _last_or_numbers(cls, layers: Any) -> Any:
        """`last 2`, or numbers with commas, or a list; sorted, each once."""
        if isinstance(layers, str) and re.fullmatch(r"last [1-9]\d*", layers.strip()):
            return layers.strip()
        if isinstance(layers, str) and re.fullmatch(r"[\d, ]+", layers):
            layers = [int(number) for number in layers.split(",") if number.strip()]
        if isinstance(layers, int) and not isinstance(layers, bool):
            layers = [layers]
        if isinstance(layers, str) or layers == []:
            raise SpecError(f"layers {layers!r}: give 'last 2', or numbers of blocks from 0 (10,11)")
        return sorted(set(layers)) if isinstance(layers, list) and all(type(n) is int for n in layers) else layers

    @property
    def label(self) -> str:
        """How the method is called in tables: its name, and where another row has it too, what differs."""
        return self.title or self.name


class TrainingSpec(Frozen):
    """How long and how fast. Where `learning_rate` is not given the method's own default is used."""

    epochs: int = Field(3, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup_ratio: float = Field(0.06, ge=0, lt=1)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    max_length: int = Field(128, ge=4)
    max_grad_norm: float = Field(1.0, gt=0)
    select: Literal["loss", "metric"] = Field("loss", description="the epoch kept: lowest loss or best metric")
    save_every: int | None = Field(None, ge=1, description="steps between checkpoints; an epoch unless given")
    prefix_dropout: bool = Field(
        True, description="dropout in the frozen blocks below the first trained one, too; without it they can be cached"
    )
    linearised: bool = Field(False, description="train the network's linearisation at W0 (the NTK regime)")


class TuningSpec(Frozen):
    """A search for each method's learning rate, with one budget for all of them, decided on validation alone."""

    trials: int = Field(4, ge=2, le=50, description="rates tried for each method")
    factor: float = Field(3.0, ge=1.2, le=100, description="from one rate of the grid to the next")
    extend: int = Field(0, ge=0, le=50, description="further trials for all, where a best rate lies on a grid's edge")
    seed: int = Field(1000, ge=0, description="of the trials; none of the comparison's own")
    given: bool = Field(False, description="search around rates that are given, too")
    stop: Literal["median", "never"] = Field("median", description="whether a trial that falls behind is stopped early")


class RunSpec(Frozen):
    """One run: one method, one seed. `id` is its content hash."""

    task: TaskName = "text"
    model: ModelSpec
    data: DataSpec
    method: MethodSpec
    training: TrainingSpec = TrainingSpec()
    seed: int = Field(0, ge=0)
    metric: str | None = Field(None, description="the main metric; the task's own unless given")

    @property
    def learning_rate(self) -> float:
        """The rate that is used: the method's, else the comparison's, else the catalog's default."""
        return (
            self.method.learning_rate
            or self.training.learning_rate
            or get_method(self.method.name).default_learning_rate
        )

    @property
    def weight_decay(self) -> float:
        """The method's own, else the comparison's."""
        return self.training.weight_decay if self.method.weight_decay is None else self.method.weight_decay

    @property
    def links(self) -> int | None:
        """Links of the run's chain, where the spec says how many; None where it leaves that to the catalog."""
        if self.method.restart_every is not None:
            return math.ceil(self.training.epochs / self.method.restart_every)
        return self.method.links

    @property
    def id(self) -> str:
        """First 16 hex digits of the sha256 of everything that decides the result (digests in, paths out)."""
        content = self.model_dump(mode="json")
        content["data"] = self.data.content(self.task)
        if self.task == "image":
            content["training"].pop("max_length")
        for part in ("model", "data"):
            if content[part]["digest"] is not None:
                for key in ("path", "validation", "test"):
                    if content[part].get(key) is not None:
                        content[part][key] = "by digest"
        if self.model.digest is not None and not self.model.trust_remote_code:
            content["model"]["revision"] = None  # the digest says what it is
        content["method"] = self._method_content()
        content["learning_rate"] = self.learning_rate
        content["training"].pop("learning_rate")
        content["training"].pop("save_every")
        content["training"]["weight_decay"] = self.weight_decay
        if self.metric is None:
            content.pop("metric")
        if not self.training.linearised:  # runs from before there was this choice keep their names
            content["training"].pop("linearised")
        if self.training.prefix_dropout:
            content["training"].pop("prefix_dropout")
        content["protocol"] = PROTOCOL
        return content_hash(content)

    def _method_content(self) -> dict[str, Any]:
        """What the method comes to: defaults filled in, and what means nothing to it left out."""
        row = get_method(self.method.name)
        content = self.method.model_dump(mode="json", exclude={"learning_rate", "weight_decay", "title"})
        if not row.adapts:
            return {"name": self.method.name}
        if self.method.layers is None:
            content.pop("layers")
        content["alpha"] = None if row.scaling == "one" else self.method.alpha or 2.0 * self.method.rank
        content["links"] = self.method.links or (row.chain.links if row.chain else None)
        if self.method.restart_every is not None:
            content["links"] = None
        else:  # runs from before there was this choice keep their names
            content.pop("restart_every")
        if self.method.a_law in (None, row.a_law):
            content.pop("a_law")
        if isinstance(content["targets"], str) and "," in content["targets"]:
            content["targets"] = [t.strip() for t in content["targets"].split(",")]
        return content


class CompareSpec(Frozen):
    """Methods x seeds on one model and one data set: what `tunewise compare` runs."""

    task: TaskName | None = Field(None, description="known from the data's form unless given; the plan fills it in")
    model: ModelSpec
    data: DataSpec
    methods: Annotated[list[MethodSpec], Field(min_length=1)]
    training: TrainingSpec = TrainingSpec()
    seeds: list[Annotated[int, Field(ge=0)]] = [0, 1, 2]
    reference: str = Field("lora", description="the method that the others are tested against")
    metric: str | None = Field(None, description="the main metric; the task's own unless given")
    measures: list[str] = Field(default_factory=default_measures, description="made of every finished run")
    measure_settings: dict[str, dict[str, Any]] = Field(default={}, description="of measures that can be set, by name")
    tuning: TuningSpec | None = Field(None, description="a learning-rate search first; `tuning: 4` is four trials each")
    trajectory: int = Field(0, ge=0, description="snapshots that each run keeps of its way; no part of a run's id")
    trajectory_full: bool = Field(False, description="full fine-tuning too: a model's size for each snapshot")
    cache_prefix: bool = Field(
        False, description="compute what lies below the first trained block once for each example; no part of ids"
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
        common = {key: content.pop(key) for key in ("rank", "alpha", "targets", "layers") if key in content}
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
            raise SpecError(f"reference {self.reference!r} is not among the methods{nearest(self.reference, labels)}")
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


def content_hash(content: Any) -> str:
    """sha256 of canonical JSON, first 16 hex digits."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parse(kind: type[Spec], content: Any, source: str = "") -> Spec:
    """Checks `content` against a spec class. Raises `SpecError`: one line that names key, fault and way out."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise SpecError(explain(error, kind, source)) from None
    except SpecError as error:  # raised by a validator of ours: already one line
        raise SpecError(f"{source}: {error}" if source else str(error)) from None


def explain(error: ValidationError, kind: type[BaseModel], source: str = "") -> str:
    """The first fault of a pydantic error in one line, with the nearest valid key for an unknown one."""
    fault = error.errors()[0]
    where = ".".join(str(p) for p in fault["loc"])
    prefix = f"{source}: " if source else ""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if fault["type"] == "extra_forbidden":
        fields = _fields_at(kind, fault["loc"][:-1])
        return f"{prefix}unknown key {where!r}{nearest(str(fault['loc'][-1]), fields)}{more}"
    if fault["type"] == "missing":
        return f"{prefix}{where!r} is missing{more}"
    if fault["type"] == "value_error":
        return f"{prefix}{where + ': ' if where else ''}{fault['msg'].removeprefix('Value error, ')}{more}"
    return f"{prefix}{where} = {_short(fault['input'])}: {fault['msg'][0].lower()}{fault['msg'][1:]}{more}"


def _fields_at(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for key in path:
        if isinstance(key, int):
            continue
        annotation = kind.model_fields[key].annotation if key in kind.model_fields else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        found = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not found:
            return []
        kind = found[0]
    return list(kind.model_fields)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with what `over` says; None says nothing, mappings are merged key by key (`model: DIR` is one)."""
    result = dict(base)
    for key, value in over.items():
        if isinstance(value, dict):
            below = result.get(key)
            if isinstance(below, str):
                below = {"path": below}
            value = merged(below if isinstance(below, dict) else {}, value)
            if value:
                result[key] = value
        elif value is not None:
            result[key] = value
    return result


def load_yaml(path: Path) -> dict[str, Any]:
    """A spec file as a dictionary. Raises `SpecError` where it is absent or not a YAML mapping."""
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.1 wants a dot in 1e-3; everybody else reads it as a number."""

    number = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise SpecError(f"spec file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"spec file {path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise SpecError(f"spec file {path}: a mapping is expected at the top (model:, data:, methods:, ...)")
    return content
