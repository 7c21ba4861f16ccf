"""What can be set about a measure, checked before anything is trained. No torch here: specs import it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Settings(BaseModel):
    """Immutable, unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class IntruderSettings(Settings):
    """Which singular vectors are looked at, and when one is counted as an intruder."""

    top_k: int | Literal["all"] = Field(10, description="singular vectors of each weight, from the largest value down")
    threshold: float = Field(0.6, gt=0, le=1, description="a vector counts whose largest |cos| is below")

    @field_validator("top_k")
    @classmethod
    def _at_least_one(cls, top_k: int | str) -> int | str:
        if isinstance(top_k, int) and top_k < 1:
            raise ValueError("at least 1, or 'all'")
        return top_k


class SharpnessSettings(Settings):
    """How sharp a minimum is: on how much data, in which directions, how far."""

    batches: int = Field(8, ge=2, description="fixed batches of training examples, of the run's batch size")
    directions: int = Field(8, ge=1, description="random filter-normalised directions")
    step: float = Field(0.05, gt=0, description="of the second difference; 1 is as long as each row of a weight")
    epsilon: float = Field(0.01, gt=0, description="radius of the search for the worst loss, in the same unit")
    ascent: int = Field(8, ge=1, description="steps of that search")
    eigenvalues: int = Field(3, ge=0, description="of the Hessian, from the largest down; 0 leaves the Hessian out")
    probes: int = Field(8, ge=1, description="random vectors behind the Hessian's trace")
    seed: int = Field(0, ge=0, description="of the batches, the directions and the probes")


class LandscapeSettings(Settings):
    """Which planes through a minimum are drawn, and how finely."""

    grid: int = Field(51, ge=3, le=401, description="points a side")
    kinds: list[Literal["random", "pca"]] = Field(["random"], min_length=1, description="of planes")
    batches: int = Field(4, ge=2, description="fixed batches of training examples, of the run's batch size")
    span: float = Field(2.0, gt=0, description="random planes reach from -span to span; 1 is a row's own length")
    together: int | None = Field(
        None, ge=1, description="points evaluated at once; the faster way is found unless given"
    )
    seed: int = Field(0, ge=0, description="of the batches and the directions")

    @field_validator("kinds", mode="before")
    @classmethod
    def _names_with_commas(cls, kinds: Any) -> Any:
        found = [k.strip() for k in kinds.split(",") if k.strip()] if isinstance(kinds, str) else kinds
        return list(dict.fromkeys(found)) if isinstance(found, list) else found
