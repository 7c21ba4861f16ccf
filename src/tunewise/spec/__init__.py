"""What is asked for: specs of one run and of a comparison. Plain data, checked before torch is imported.

A `RunSpec` names everything that decides a run's result, and its `id` is the hash of just that: where a file
lies is left out, what is in it (the digests) is in. A `CompareSpec` is what a command line or a YAML file says;
`CompareSpec.runs()` spreads it over methods and seeds.
"""

from tunewise.spec.comparison import CompareSpec
from tunewise.spec.flag import Flag
from tunewise.spec.manner import Manner, apart
from tunewise.spec.parts import DataSpec, Frozen, MethodSpec, ModelSpec, TaskName, TrainingSpec, TuningSpec
from tunewise.spec.reading import load_yaml, merged, parse
from tunewise.spec.run import RunSpec, content_hash

__all__ = [
    "CompareSpec",
    "DataSpec",
    "Flag",
    "Frozen",
    "Manner",
    "MethodSpec",
    "ModelSpec",
    "RunSpec",
    "TaskName",
    "TrainingSpec",
    "TuningSpec",
    "apart",
    "content_hash",
    "load_yaml",
    "merged",
    "parse",
]
