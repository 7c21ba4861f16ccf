"""What a spec is made of: model, data, method, training and the search for rates. Checked against the catalogs."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tunewise.catalog import ALaw, get_method
from tunewise.errors import SpecError

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
