"""Specs of a run and of a study. Plain data, checked before torch is imported.

A `RunSpec` holds everything that decides a run's result, and its `id` is the hash of just that: where a file lies is
left out, what is in it (the digests) is in. A `StudySpec` is what a command line or a YAML file says;
`StudySpec.runs()` spreads it over methods, seeds and all other axes.
"""

from tunewise.spec.evaluation import EvaluationSpec
from tunewise.spec.execution import ExecutionOptions, RayOptions, split_options
from tunewise.spec.parts import DataSpec, Flag, Frozen, MethodSpec, ModelSpec, TaskName, TrainingSpec, TuningSpec
from tunewise.spec.reading import load_yaml, merge_specs, parse
from tunewise.spec.run import RunSpec, content_hash
from tunewise.spec.study import StudySpec

__all__ = [
    "DataSpec",
    "EvaluationSpec",
    "ExecutionOptions",
    "Flag",
    "Frozen",
    "MethodSpec",
    "ModelSpec",
    "RayOptions",
    "RunSpec",
    "StudySpec",
    "TaskName",
    "TrainingSpec",
    "TuningSpec",
    "content_hash",
    "load_yaml",
    "merge_specs",
    "parse",
    "split_options",
]
