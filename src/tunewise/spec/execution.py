"""How a study is run and shown: options that may stand in its file and are no part of any run's id."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from tunewise.errors import SpecError
from tunewise.spec.parts import Flag, Frozen
from tunewise.spec.reading import Content, parse


class RayOptions(Frozen):
    """Which Ray runs the study, and how much of a machine each run takes."""

    flag_group: ClassVar[str] = "Ray"

    address: Annotated[str | None, Flag("ray_address")] = Field(
        None, description="Cluster to join: auto, HOST:6379; a Ray of this machine's own unless given."
    )
    cpus_per_run: float = Field(1.0, ge=0, description="CPU cores that a run takes.")
    gpus_per_run: float | None = Field(
        None, ge=0, description="GPUs that a run takes, or a part of one: 0.5; 1 unless given, if there are any."
    )


class ExecutionOptions(Frozen):
    """How a study is run and shown."""

    flag_group: ClassVar[str] = "Execution"

    out: str = Field("runs", description="Folder for the runs and what is written about them.")
    title: Annotated[str | None, Flag(group="Measurements")] = Field(None, description="Title of the report.")
    costs: Annotated[bool, Flag(group="Measurements")] = Field(
        True, description="Measure step time and memory after the runs."
    )
    track: Annotated[list[str], Flag(group="Measurements")] = Field(
        [], description="Trackers to report to as well, separated by commas: tensorboard, wandb, trackio."
    )
    executor: Annotated[Literal["serial", "processes", "ray"] | None, Flag("on")] = Field(
        None, description="Where runs are done: serial (in this process), processes (with --jobs), or ray."
    )
    jobs: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        None,
        description="Processes that run side by side, one thread each, on GPUs of their own; as many as there are GPUs "
        "unless given, all in this process where there is at most one.",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Where models are computed; auto: on the GPU where there is one."
    )
    ray: RayOptions = Field(default_factory=RayOptions)
    force: bool = Field(False, description="Start even if memory or disk look too small.")

    @field_validator("out")
    @classmethod
    def _without_slash(cls, out: str) -> str:
        return out.rstrip("/") or "/"

    @field_validator("track", mode="before")
    @classmethod
    def _split_names(cls, track: object) -> object:
        return [name.strip() for name in track.split(",") if name.strip()] if isinstance(track, str) else track

    @model_validator(mode="after")
    def _jobs_are_processes(self) -> ExecutionOptions:
        if self.jobs is not None and self.executor not in (None, "processes"):
            raise SpecError(
                f"jobs = {self.jobs} is for executor processes; leave out jobs, or executor {self.executor}"
            )
        return self

    @property
    def executor_name(self) -> Literal["serial", "processes", "ray"]:
        """The executor that is meant: `jobs` alone means processes."""
        return self.executor or ("serial" if self.jobs is None else "processes")


def split_options(content: Content, source: str = "") -> tuple[ExecutionOptions, Content]:
    """The options, and what is left: the study itself. Raises `SpecError`."""
    keys = ExecutionOptions.model_fields
    options = {key: content[key] for key in keys if content.get(key) is not None}
    return parse(ExecutionOptions, options, source), {key: value for key, value in content.items() if key not in keys}
