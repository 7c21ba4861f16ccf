"""Options that several verbs share: their types, their words, and the part of a verb's help that they stand in.

Most are None unless given, so that a spec file can say what no flag says; the help then names the default itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from tunewise.errors import SpecError

# One for each part of a verb's help.
source: Callable[..., Any] = partial(typer.Option, rich_help_panel="Model and data")
methods: Callable[..., Any] = partial(typer.Option, rich_help_panel="Methods")
training: Callable[..., Any] = partial(typer.Option, rich_help_panel="Training")
kept: Callable[..., Any] = partial(typer.Option, rich_help_panel="What is measured and kept")
doing: Callable[..., Any] = partial(typer.Option, rich_help_panel="How it is done")

Task = Annotated[
    str | None,
    source(help="text, image, causal, generation, regression or choice.  [default: by the form of the data]"),
]
Model = Annotated[str | None, source(help="Folder, hub id, or package:MODULE/path.")]
Revision = Annotated[str | None, source(help="Hub revision of the model to pin.")]
TrustRemoteCode = Annotated[bool | None, source("--trust-remote-code", help="Run code that a hub model brings along.")]
Data = Annotated[
    str | None,
    source(
        help="Training file: csv, tsv, jsonl, parquet (also .gz), or a folder of class folders; "
        "hub:OWNER/NAME/FILE for one of a hub's data sets."
    ),
]
Validation = Annotated[str | None, source(help="Validation file; cut from train unless given.")]
Test = Annotated[str | None, source(help="Test file; cut from train unless given.")]
Text = Annotated[str | None, source(help="Name of the text column.  [default: text]")]
TextPair = Annotated[str | None, source(help="Name of the second text column, for pairs.")]
Label = Annotated[str | None, source(help="Name of the label column.  [default: label]")]
Image = Annotated[
    str | None, source(help="Name of the column of images, or of their paths.  [default: found by its name]")
]
Choices = Annotated[
    str | None, source(help="Column of lists of answers, or several columns with commas: multiple choice.")
]
Encoding = Annotated[
    str | None, source(help="Of the files; several are tried in turn: utf-8,latin-1.  [default: utf-8]")
]
ImageSize = Annotated[int | None, source(help="Pixels a side that images are shown at.  [default: the model's own]")]
TrainSize = Annotated[int | None, source(help="Train on this many examples only.")]
ValidationSize = Annotated[int | None, source(help="Validate on this many examples only.")]
TestSize = Annotated[int | None, source(help="Test on this many examples only.")]

Rank = Annotated[int | None, methods(help="Rank; of a column method the number of columns.  [default: 8]")]
Alpha = Annotated[float | None, methods(help="The scale is alpha / rank.  [default: 2 x rank]")]
Targets = Annotated[str | None, methods(help="Layers: qv, attention, all-linear, or names with commas.  [default: qv]")]
Layers = Annotated[
    str | None, methods(help="Only in these blocks: 'last 2', or numbers from 0 with commas.  [default: all]")
]

Epochs = Annotated[int | None, training(help="[default: 3]")]
LearningRate = Annotated[float | None, training(help="[default: each method's own]")]
WeightDecay = Annotated[float | None, training(help="[default: 0]")]
MaxLength = Annotated[int | None, training(help="Tokens a text is cut to.  [default: 128]")]

Measures = Annotated[str | None, kept(help="Made of every finished run: names with commas, or none.")]
Costs = Annotated[bool | None, kept("--costs/--no-costs", help="Measure step time and memory after the runs.")]

Out = Annotated[Path | None, typer.Option(help="Where the runs go, and what is written of them.  [default: runs]")]
Force = Annotated[bool, doing("--force", help="Start where memory or disk look too small, all the same.")]
Jobs = Annotated[
    int | None, doing(min=1, help="Processes that do runs side by side, one thread each.  [default: all in this one]")
]
DryRun = Annotated[bool, doing("--dry-run", help="Print the plan and stop.")]


_OF_MODEL = ("revision", "trust_remote_code")
_OF_DATA = (
    "validation",
    "test",
    "text",
    "text_pair",
    "label",
    "image",
    "image_size",
    "choices",
    "encoding",
    "train_size",
    "validation_size",
    "test_size",
)
_OF_TRAINING = (
    "epochs",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "max_length",
    "linearised",
    "select",
    "save_every",
)


def sections(flags: Mapping[str, Any]) -> dict[str, Any]:
    """A spec's sections of model, data and training from a verb's flags, as `typer.Context.params` has them; what the
    verb has no flag for is left out."""
    return {
        "task": flags["task"],
        "model": {"path": flags["model"], **{name: flags[name] for name in _OF_MODEL}},
        "data": {"path": flags["data"], **{name: flags[name] for name in _OF_DATA}},
        "training": {name: flags[name] for name in _OF_TRAINING if name in flags},
    }


def names(said: str | None) -> str | list[str] | None:
    """Several names with commas as a list, one as it is."""
    return said.split(",") if said and "," in said else said


def seeds(said: str | None) -> int | list[int] | None:
    """How many, or a list with commas. Raises `SpecError` for what is neither."""
    if said is None:
        return None
    try:
        numbers = [int(part) for part in said.split(",")]
    except ValueError:
        raise SpecError(f"--seeds {said!r}: give how many (3), or a list (0,1,2)") from None
    if "," not in said and numbers[0] < 1:
        raise SpecError(f"--seeds {said}: at least one is needed")
    return numbers if "," in said else numbers[0]
