"""The task of a spec; kept between runs, since reading and tokenising are the same for all of them."""

from __future__ import annotations

from functools import lru_cache

from tunewise.spec import CompareSpec, RunSpec
from tunewise.tasks.contract import Task
from tunewise.tasks.text import TextClassification


def build_task(spec: RunSpec | CompareSpec) -> Task:
    """The data of a spec, read, split and tokenised. Raises `DataError`, `ModelError`."""
    return _text(spec.model.model_dump_json(), spec.data.model_dump_json(), spec.training.max_length)


@lru_cache(maxsize=2)
def _text(model: str, data: str, max_length: int) -> Task:
    from tunewise.spec import DataSpec, ModelSpec

    return TextClassification(ModelSpec.model_validate_json(model), DataSpec.model_validate_json(data), max_length)
