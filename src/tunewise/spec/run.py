"""One run: everything that decides its result, and the content hash that names it."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from tunewise.catalog import get_method
from tunewise.default_rates import default_rate
from tunewise.errors import SpecError
from tunewise.registry import TASKS
from tunewise.spec.evaluation import EvaluationSpec
from tunewise.spec.parts import DataSpec, Flag, Frozen, MethodSpec, ModelSpec, TaskName, TrainingSpec

# Bumped when the same spec would give another result, so that old folders are not taken for new ones.
PROTOCOL = 2


class RunSpec(Frozen):
    """One run: one method, one seed. `id` is its content hash."""

    task: Annotated[TaskName, Flag(group="Model and data", default="")] = Field(
        "text", description="What is learned; recognised from the form of the data unless given."
    )
    model: ModelSpec
    data: DataSpec
    method: MethodSpec
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    seed: Annotated[int, Flag(group="Training")] = Field(
        0, ge=0, description="Seed of the initial values, the order of examples and dropout."
    )
    metric: Annotated[str | None, Flag(group="Training")] = Field(
        None, description="Main metric; the task's own unless given. Of generated answers also FILE.py:FUNCTION."
    )
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)

    @model_validator(mode="after")
    def _check_parts_together(self) -> RunSpec:
        if self.method.restart_every is not None and self.training.max_steps is not None:
            raise SpecError("restart_every counts epochs, and max_steps replaces them; give the number of links")
        if self.method.name == "fft" and self.model.quantization != "none":
            raise SpecError(
                f"method fft trains every weight, and quantization {self.model.quantization} keeps them frozen; leave "
                "one of them out"
            )
        return self

    default_rate: Annotated[float | None, Flag(hidden=True)] = Field(
        None, description="Learning rate where none is given; the plan fills it in."
    )

    @property
    def learning_rate(self) -> float:
        """The rate that is used: the method's, else the comparison's, else the method's default for the task."""
        return self.given_rate or self.default_rate or self.find_default_rate()

    def find_default_rate(self) -> float:
        """The method's default for the task, whose module is imported for it."""
        return default_rate(get_method(self.method.name), TASKS.get(self.task).rate_regime)

    @property
    def given_rate(self) -> float | None:
        """The method's rate, else the comparison's; None where the default is used."""
        return self.method.learning_rate or self.training.learning_rate

    @property
    def weight_decay(self) -> float:
        """The method's own, else the comparison's."""
        return self.training.weight_decay if self.method.weight_decay is None else self.method.weight_decay

    @property
    def links(self) -> int | None:
        """Links of the run's chain, where the spec says how many; None where it leaves that to the catalog."""
        if self.method.restart_every is not None and self.training.max_steps is None:
            return math.ceil(self.training.epochs / self.method.restart_every)
        return self.method.links

    @property
    def id(self) -> str:
        """First 16 hex digits of the sha256 of everything that decides the result (digests in, paths out)."""
        return content_hash(self._content())

    @property
    def untrained_id(self) -> str:
        """The same for runs that score alike on the test split before they are trained, if their methods do."""
        content = self._content()
        scored = {key: content.get(key) for key in ("task", "model", "data", "metric", "evaluation", "protocol")}
        training = {key: content["training"][key] for key in ("batch_size", "max_length", "linearised")}
        return content_hash({**scored, "training": training})

    def _content(self) -> dict[str, Any]:
        """Everything that decides the result."""
        content = self.model_dump(
            mode="json", exclude={"default_rate": True, "data": {"notes"}, "training": {"learning_rate", "save_every"}}
        )
        for part in ("model", "data"):
            if content[part]["digest"] is not None:
                for key in ("path", "validation", "test"):
                    if content[part].get(key) is not None:
                        content[part][key] = "by digest"
        if self.model.digest is not None and not self.model.trust_remote_code:
            content["model"]["revision"] = None  # the digest identifies the files
        content["metric"] = _without_folder(self.metric)
        content["evaluation"] = self.evaluation.model_dump(mode="json", exclude_defaults=True)
        if "harness" in content["evaluation"]:
            content["evaluation"]["harness"] = _without_folder(self.evaluation.harness)
        if not content["evaluation"]:
            del content["evaluation"]
        content["method"] = self.method.content()
        content["learning_rate"] = self.learning_rate
        content["training"]["weight_decay"] = self.weight_decay
        content["protocol"] = PROTOCOL
        return content


def _without_folder(path: str | None) -> str | None:
    """Where a file lies does not matter; what is in it is known by its digest."""
    return path if path is None else Path(path).name


def content_hash(content: object) -> str:
    """sha256 of canonical JSON, first 16 hex digits."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
