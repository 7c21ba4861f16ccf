"""What a spec is made of: model, data, method, training and the search for rates. Checked against the catalogs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from tunewise.catalog import LoraAInit, get_method
from tunewise.errors import SpecError
from tunewise.registry import TASKS
from tunewise.text_format import is_unicode


@dataclass(frozen=True)
class Flag:
    """How a field appears on the command line, in its `Annotated[...]`. `name`: of the flag, instead of the field's;
    `group`: of the help page; `default`: what the help page shows as the default, nothing where it is empty."""

    name: str | None = None
    group: str | None = None
    default: str | None = None
    hidden: bool = False

    @staticmethod
    def of(field: FieldInfo) -> Flag:
        """The `Flag` of a field, or the default."""
        return next((item for item in field.metadata if isinstance(item, Flag)), Flag())


TaskName = Annotated[str, AfterValidator(TASKS.check)]
"""A name of the task registry."""


def _check_size(size: int | float | None) -> int | float | None:
    if size is not None and not (size >= 1 if isinstance(size, int) else 0 < size < 1):
        raise SpecError(f"size {size!r}: give a number of examples (200), or a share between 0 and 1 (0.1)")
    return size


PartSize = Annotated[int | float | None, AfterValidator(_check_size)]
"""A number of examples, or a share."""


class Frozen(BaseModel):
    """Immutable, unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    @field_validator("*")
    @classmethod
    def _check_unicode(cls, value: object, field: ValidationInfo) -> object:
        if isinstance(value, str) and not is_unicode(value):
            raise SpecError(f"{field.field_name} {value!r} is not UTF-8; rename the file, or correct the text")
        return value


class ModelSpec(Frozen):
    """A pretrained model: a folder, a hub id, or `package:MODULE/inner/path` (a zip is unpacked once, a GGUF file is
    dequantized once)."""

    flag_group: ClassVar[str] = "Model and data"

    path: Annotated[str, Flag("model")] = Field(
        description="Pretrained model: a folder, a hub id, or package:MODULE/path."
    )
    revision: str | None = Field(None, description="Hub revision of the model to pin.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of the frozen weights; auto: the checkpoint's own on a GPU, float32 on a CPU."
    )
    quantization: Literal["none", "nf4", "fp4", "int8"] = Field(
        "none", description="Load the frozen weights in 4 or 8 bits by bitsandbytes; nf4 is that of QLoRA."
    )
    attn_implementation: str | None = Field(
        None, description="Attention kernel of transformers: sdpa, eager, flash_attention_2; its choice unless given."
    )
    trust_remote_code: bool = Field(False, description="Run the code that comes with a hub model.")
    digest: Annotated[str | None, Flag(hidden=True)] = Field(
        None, description="sha256 over the files of the model; the plan fills it in."
    )


class DataSpec(Frozen):
    """Labelled text or text pairs: csv, tsv, JSON, parquet (each also .gz), a folder of class folders of .txt
    files, or one of these inside an installed package (`package:MODULE/inner/path`) or a hub's data set
    (`hub:OWNER/NAME[@REVISION]/inner/path`). Images: a folder of class folders, or parquet with the images in it."""

    flag_group: ClassVar[str] = "Model and data"

    path: Annotated[str, Flag("data")] = Field(
        description="Training data: csv, tsv, jsonl, parquet (also .gz), a folder of class folders, or a data set of "
        "a hub, hub:OWNER/NAME/FILE."
    )
    validation: str | None = Field(None, description="Validation file; cut from the training data unless given.")
    test: str | None = Field(None, description="Test file; cut from the training data unless given.")
    text: str = Field("text", description="Name of the text column.")
    text_pair: str | None = Field(None, description="Name of the second text column, for pairs.")
    label: str = Field("label", description="Name of the label column.")
    positive: str | None = Field(None, description="Of two classes the one that F1 is of; the second unless given.")
    image: str | None = Field(None, description="Column of images; detected unless given.")
    image_size: int | None = Field(None, ge=8, description="Pixels per side; the model's own unless given.")
    choices: str | None = Field(
        None, description="Multiple choice: a column of lists of answers, or several columns separated by commas."
    )
    chat_template: str | None = Field(
        None,
        description="Of chats: plain, or a Jinja file; the model's own template unless given.",
    )
    loss_on: Literal["assistant", "last", "all"] = Field(
        "assistant", description="Of chats: learn the assistant's turns, its last turn, or every token."
    )
    drop_too_long: bool = Field(False, description="Leave out chats whose first max_length tokens have no target.")
    encoding: str = Field("utf-8", description="Encoding of the files; several are tried in turn: utf-8,cp1252.")
    train_size: PartSize = Field(None, description="Train on this many examples only, or on this share of them.")
    validation_size: PartSize = Field(
        None, description="Examples to validate on: 200, or a share, 0.1. Without a file 15 % are cut from train."
    )
    test_size: PartSize = Field(
        None, description="Examples to test on: 200, or a share, 0.1. Without a file 20 % are cut from train."
    )
    split_seed: int = Field(0, description="Seed of the split into training, validation and test data.")
    digest: Annotated[str | None, Flag(hidden=True)] = Field(
        None, description="sha256 over the files; the plan fills it in."
    )
    notes: Annotated[list[str], Flag(hidden=True)] = Field(
        default=[], description="How the files were made; recorded, not part of a run's id."
    )


class MethodSpec(Frozen):
    """One method of the catalog, with its rank and where it goes."""

    flag_group: ClassVar[str] = "Methods"

    name: Annotated[str, Flag("method")] = Field(description="Name of a method of the catalog.")
    rank: int = Field(8, ge=1, description="Rank; for a column method the number of columns.")
    alpha: float | None = Field(None, gt=0, description="The scale is alpha / rank; 2 x rank unless given.")
    targets: Annotated[str | list[str], Flag(default="qv; of language models all-linear")] = Field(
        "qv", description="Layers to adapt: qv, attention, all-linear, or names separated by commas."
    )
    layers: str | list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="Blocks to adapt: 'last 2', or numbers from 0 separated by commas; all unless given."
    )
    links: int | None = Field(None, ge=1, description="Chains: number of links; the method's own unless given.")
    restart_every: int | None = Field(
        None, ge=1, description="Chains: epochs per link, instead of the number of links."
    )
    lora_a_init: LoraAInit | None = Field(
        None, description="Distribution of a random A; the method's own unless given."
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input of the adapters.")
    learning_rate: Annotated[float | None, Flag(hidden=True)] = Field(
        None, gt=0, description="Learning rate of this method alone."
    )
    weight_decay: Annotated[float | None, Flag(hidden=True)] = Field(
        None, ge=0, description="Weight decay of this method alone."
    )
    title: Annotated[str | None, Flag(hidden=True)] = Field(
        None, description="Name in tables; made from the settings where two rows have one name."
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        get_method(name)
        return name

    @model_validator(mode="before")
    @classmethod
    def _rank_of_the_method(cls, content: object) -> object:
        """Refuse a rank that means nothing to the method; fill in a default of its own."""
        if not isinstance(content, dict) or "name" not in content:
            return content
        rank = get_method(str(content["name"])).resolve_rank(content.get("rank"))
        given = {key: value for key, value in content.items() if key != "rank" or value is not None}
        return given if rank == cls.model_fields["rank"].default else {"rank": rank, **given}

    @field_serializer("rank")
    def _no_rank_without_meaning(self, rank: int) -> int | None:
        return None if get_method(self.name).refuses_rank else rank

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
        if self.lora_a_init is not None and get_method(self.name).where != "random":
            raise SpecError(f"method {self.name!r} has no random A, so 'lora_a_init' means nothing to it; leave it out")
        return self

    @field_validator("targets", mode="before")
    @classmethod
    def _names_with_commas(cls, targets: object) -> object:
        if isinstance(targets, str) and "," in targets:
            return [name.strip() for name in targets.split(",") if name.strip()]
        return targets

    @field_validator("layers", mode="before")
    @classmethod
    def _last_or_numbers(cls, layers: object) -> object:
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

    def content(self) -> dict[str, object]:
        """What decides the result: defaults filled in, settings that mean nothing to the method left out."""
        row = get_method(self.name)
        if not row.adapts:
            return {"name": self.name}
        content = self.model_dump(mode="json", exclude={"learning_rate", "weight_decay", "title"})
        content["alpha"] = None if row.scaling == "one" else self.alpha or 2.0 * self.rank
        if self.restart_every is None:
            content["links"] = self.links or (row.chain.links if row.chain else None)
        content["lora_a_init"] = self.lora_a_init or row.lora_a_init
        return content


class TrainingSpec(Frozen):
    """How long and how fast. Where `learning_rate` is not given the method's own default is used."""

    flag_group: ClassVar[str] = "Training"

    epochs: int = Field(3, ge=1, description="Passes over the training data.")
    max_steps: int | None = Field(None, ge=1, description="Optimizer steps, instead of epochs.")
    batch_size: int = Field(16, ge=1, description="Examples of a forward pass, over all processes.")
    gradient_accumulation_steps: int = Field(1, ge=1, description="Batches whose gradients make an optimizer step.")
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass: less memory, more time."
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw", description="AdamW, or that of bitsandbytes with its moments in 8 bits."
    )
    learning_rate: float | None = Field(None, gt=0, description="Peak learning rate; each method's own unless given.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW.")
    warmup_ratio: float = Field(0.06, ge=0, lt=1, description="Share of the steps with a rising learning rate.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the learning rate changes after the warm-up."
    )
    max_length: Annotated[int, Flag(default="128; of language models 1024")] = Field(
        128, ge=4, description="Tokens that a text is cut to."
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    select: Literal["loss", "metric"] = Field(
        "loss", description="Epoch that is kept: lowest validation loss or best validation metric."
    )
    eval_steps: int | None = Field(None, ge=1, description="Steps between evaluations; an epoch unless given.")
    save_every: int | None = Field(
        None, ge=1, description="Steps between checkpoints; those between evaluations unless given."
    )
    neftune_noise_alpha: float | None = Field(None, gt=0, description="Noise on the embeddings (NEFTune).")
    linearised: bool = Field(False, description="Train the network's linearisation at W0 (the NTK regime).")

    def steps_per_epoch(self, examples: int) -> int:
        """Optimizer steps of one pass over so many examples."""
        return math.ceil(math.ceil(examples / self.batch_size) / self.gradient_accumulation_steps)

    def steps(self, examples: int) -> int:
        """Optimizer steps of a run."""
        return self.max_steps or self.steps_per_epoch(examples) * self.epochs


class TuningSpec(Frozen):
    """A search for each method's learning rate, with one budget for all of them, decided on validation alone."""

    flag_group: ClassVar[str] = "Learning-rate search"

    trials: Annotated[int, Flag("tune", default="")] = Field(
        4, ge=2, le=50, description="Rates to try for each method whose rate is not given; 0: no search."
    )
    factor: Annotated[float, Flag("tune_factor")] = Field(
        3.0, ge=1.2, le=100, description="Ratio of neighbouring rates of the grid."
    )
    extend: Annotated[int, Flag("tune_extend")] = Field(
        3, ge=0, le=50, description="Most further trials for every method while a best rate lies at the end of a grid."
    )
