"""What the file of a comparison says besides the comparison: where to, and in which manner; no part of any run's id."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from tunewise.spec.flag import Flag
from tunewise.spec.parts import Frozen
from tunewise.spec.reading import parse


class Manner(Frozen):
    """How a comparison is done and shown."""

    flag_group: ClassVar[str] = "Execution"

    out: str = Field("runs", description="Folder for the runs and what is written about them.")
    title: Annotated[str, Flag(group="Measurements")] = Field(
        "Which fine-tuning method?", description="Title of the report."
    )
    costs: Annotated[bool, Flag(group="Measurements")] = Field(
        True, description="Measure step time and memory after the runs."
    )
    jobs: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        None, description="Processes that run side by side, one thread each; all in this process unless given."
    )
    track: Annotated[list[str], Flag(group="Measurements")] = Field(
        [], description="Trackers to report to as well, separated by commas: tensorboard, wandb, trackio."
    )

    @field_validator("out")
    @classmethod
    def _without_slash(cls, out: str) -> str:
        return out.rstrip("/") or "/"

    @field_validator("track", mode="before")
    @classmethod
    def _names_with_commas(cls, track: Any) -> Any:
        return [name.strip() for name in track.split(",") if name.strip()] if isinstance(track, str) else track


def apart(content: dict[str, Any], source: str = "") -> tuple[Manner, dict[str, Any]]:
    """The manner, and what is left: the comparison itself. Raises `SpecError`."""
    said = {key: content[key] for key in Manner.model_fields if content.get(key) is not None}
    return parse(Manner, said, source), {key: value for key, value in content.items() if key not in Manner.model_fields}
