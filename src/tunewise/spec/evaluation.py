"""What models are scored on, and how generated answers are scored, beside the name of the main metric."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from tunewise.errors import SpecError
from tunewise.spec.parts import Flag, Frozen

HARNESS_PREFIX = "lm_eval:"


class EvaluationSpec(Frozen):
    """What the gap is taken from; what is generated, how the answer is found in it, and which test of
    lm-evaluation-harness is taken."""

    flag_group: ClassVar[str] = "Measurements"

    extract: str | None = Field(
        None, description="Regular expression with one group: the answer in a generated text and in its reference."
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="Tokens to generate at most; 16 more than the longest reference unless given."
    )
    temperature: float = Field(0.0, ge=0, description="Temperature of sampling; 0 takes the likeliest token.")
    eval_samples: int | None = Field(
        None, ge=1, description="Generate answers to this many validation and test examples at most."
    )
    gap_samples: int = Field(
        512, ge=1, description="Training examples to take the generalization gap from, at most: a fixed sample."
    )
    harness: Annotated[str | None, Flag("eval")] = Field(
        None, description="Test metric: a task of lm-evaluation-harness, lm_eval:TASK, or the YAML file of one."
    )
    digest: Annotated[str | None, Flag(hidden=True)] = Field(
        None, description="sha256 over the user's own files that score; the plan fills it in."
    )

    @field_validator("extract")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise SpecError(f"extract {pattern!r} is not a regular expression: {error}") from None
        if groups != 1:
            raise SpecError(f"extract {pattern!r} has {groups} groups; put one around the answer: '#### (.*)'")
        return pattern

    @field_validator("harness")
    @classmethod
    def _task_or_file(cls, harness: str | None) -> str | None:
        name = (harness or "").removeprefix(HARNESS_PREFIX)
        if harness is not None and not is_harness_file(harness) and (name == harness or not name):
            raise SpecError(f"eval {harness!r}: give {HARNESS_PREFIX}TASK, or a .yaml file of lm-evaluation-harness")
        return harness

    @property
    def of_answers(self) -> list[str]:
        """The settings that are given and concern generated answers alone."""
        answers = ("extract", "max_new_tokens", "temperature", "eval_samples")
        return [key for key in answers if getattr(self, key) != type(self).model_fields[key].default]


def is_harness_file(harness: str) -> bool:
    """Whether it is the path of a task's file, not its name."""
    return harness.lower().endswith((".yaml", ".yml"))
