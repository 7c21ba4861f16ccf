"""In what two runs differ: what was asked for, where it was done, what came of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from tunewise.store.filters import flat
from tunewise.store.records import RunRecord


class Difference(NamedTuple):
    """One key with its two values; None also where one of them has no such key."""

    part: str
    key: str
    first: Any
    second: Any


def differences(first: RunRecord, second: RunRecord) -> list[Difference]:
    """Keys that differ, in the order of the record. A rate that stands for itself in neither specification (a default)
    is compared as the one that was used."""
    found = []
    for part in ("spec", "environment", "results"):
        one, two = (_content(record, part) for record in (first, second))
        for key in dict.fromkeys([*one, *two]):
            if one.get(key) != two.get(key):
                found.append(Difference(part, key, one.get(key), two.get(key)))
    return found


def _content(record: RunRecord, part: str) -> dict[str, Any]:
    content = record.model_dump(mode="json")
    if part == "spec":
        return {**flat(content["spec"]), "learning_rate": record.spec.learning_rate}
    if part == "environment":
        return flat(content["environment"])
    facts = {
        "status": record.status,
        "error": record.error,
        "seconds": record.seconds,
        "trainable": record.model.trainable if record.model else None,
        "gap": record.results.gap if record.results else None,
        "data": {split: getattr(record.data, split) for split in ("train", "validation", "test")}
        if record.data
        else None,
    }
    results = flat(content["results"]) if content["results"] else {}
    return {**flat(facts), **{key: value for key, value in results.items() if key != "confusion"}}
