"""What of a run's spec decides the time of a step, as text that can be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache


def shape_of(spec: Mapping[str, Mapping[str, object]]) -> str:
    """Model, data, batch and method, with its rank."""
    method, training = spec["method"], spec["training"]
    free = ("learning_rate", "alpha", "title", "links", "restart_every", "weight_decay", "lora_a_init")
    parts = [
        spec["model"]["digest"] or spec["model"]["path"],
        data_of(spec),
        {key: value for key, value in method.items() if key not in free},
        {key: training.get(key) for key in ("batch_size", "max_length", "linearised")},
    ]
    return json.dumps(parts, sort_keys=True)


@lru_cache(maxsize=4096)
def any_rank(shape: str) -> str:
    """The same without the rank."""
    parts = json.loads(shape)
    parts[2].pop("rank", None)
    return json.dumps(parts, sort_keys=True)


def data_of(spec: Mapping[str, Mapping[str, object]]) -> str:
    """The data's content and how it is split."""
    data = spec["data"]
    left_out = {"path", "validation", "test", "notes"} if data["digest"] is not None else {"notes"}
    return json.dumps({key: value for key, value in data.items() if key not in left_out}, sort_keys=True)
