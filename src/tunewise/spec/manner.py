"""What the file of a comparison says besides the comparison: where to, and in which manner; no part of any run's id."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from tunewise.spec.parts import Frozen
from tunewise.spec.reading import parse


class Manner(Frozen):
    """How a comparison is done and shown."""

    out: str = Field("runs", description="the runs folder")
    title: str = Field("Which fine-tuning method?", description="of the report")
    costs: bool = Field(True, description="step time and memory are measured after the runs")
    jobs: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        None, description="processes; all in one unless given"
    )
    pack: Annotated[int, Field(strict=True, ge=1)] = Field(1, description="runs that are batched over one backbone")
    track: list[str] = Field([], description="trackers to report to: names with commas, or a list")

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
