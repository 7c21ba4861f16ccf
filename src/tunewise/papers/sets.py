"""The fourteen data sets of data/sets.yaml: hub repositories, the forms of their public files, splits and metrics."""

from __future__ import annotations

from typing import Literal

import yaml
from pydantic import BaseModel

from tunewise.errors import SpecError, suggest_nearest
from tunewise.papers.models import DATA
from tunewise.registry import TASKS

_TABLES = r"([-_./].*)?\.(csv|tsv|jsonl|parquet)"
NAMES = {
    "train": r"(^|[/_.-])train(set)?" + _TABLES,
    "validation": r"(^|[/_.-])(validation|valid|val|dev)(set)?" + _TABLES,
    "test": r"(^|[/_.-])test(set)?" + _TABLES,
}
"""Usual names of the files of a part, or of their folders."""


class Form(BaseModel, frozen=True, extra="forbid"):
    """One form of a set's files. Columns are names, or numbers where `rows` have no header; `a|b` is the first of both
    that exists."""

    files: dict[str, str] = NAMES
    """Part -> pattern of lower-case paths, without .gz."""
    source: Literal["", "mrpc", "django"] = ""
    """A function of forms.py that reads the rows of several files together."""
    items: Literal["", "e2e", "openbookqa", "logiqa"] = ""
    """A function of forms.py that turns a row into examples; else the columns below do."""
    rows: Literal["table", "fields", "words"] = "table"
    """table: columns with names. fields: separated by tabs. words: the first word, and the rest of the line."""
    encoding: str = "utf-8"
    replace: dict[str, str] = {}
    text: str = ""
    prompt: str = ""
    """Instead of `text`: a text with {columns}, which are stripped."""
    pair: str = ""
    label: str = ""
    class_names: bool = False
    """Whether labels are the names in a parquet file's metadata, not their numbers."""
    rename: dict[str, str] = {}
    """Labels that are other names of the same class."""
    lower: bool = False
    note: str = ""


class PaperSet(BaseModel, frozen=True, extra="forbid"):
    """One data set; the head of data/sets.yaml describes the fields."""

    key: str
    printed: str
    hub: str
    forms: tuple[Form, ...]
    task: str = "text"
    metric: str = "accuracy"
    validation_size: float = 0.1
    test_size: float = 0.2
    select: Literal["loss", "metric"] = "loss"
    factor: float = 100.0
    classes: int = 2
    """Of a classifier; for counting."""
    caveat: str = ""
    """A property of the set that affects scores; added to the notes of the data."""

    @property
    def has_texts(self) -> bool:
        """Whether the inputs are texts, or images."""
        return bool(TASKS.get(self.task).has_tokens)


SETS = {
    key: PaperSet(key=key, **fields)
    for key, fields in yaml.safe_load((DATA / "sets.yaml").read_text(encoding="utf-8")).items()
}


def get_set(key: str) -> PaperSet:
    """Raises `SpecError` for an unknown key."""
    if key not in SETS:
        raise SpecError(f"the paper has no data set {key!r}{suggest_nearest(key, SETS)}")
    return SETS[key]
