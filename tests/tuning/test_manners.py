"""A search whose trials are done in processes finds what one after another finds."""

from __future__ import annotations

from pathlib import Path

import pytest
from tunewise.comparison import compare

from tunewise.spec import StudySpec


def spec_of(model: Path, data: Path, **changes: object) -> StudySpec:
    content: dict[str, object] = {
        "model": str(model),
        "data": {"path": str(data), "train_size": 48, "validation_size": 24, "test_size": 16},
        "methods": ["lora", "cla"],
        "rank": 2,
        "seeds": 1,
        "tuning": {"trials": 3, "factor": 10},
        "measures": "none",
        "training": {"epochs": 2, "batch_size": 16, "max_length": 16},
    }
    return StudySpec.model_validate(content | changes)


@pytest.mark.slow
def test_trials_in_processes_are_the_same_to_the_last_bit(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    spec = spec_of(tiny_model, toy_csv, training={"epochs": 4, "batch_size": 16, "max_length": 16})
    alone = compare(spec, tmp_path / "alone", costs=False)
    jobs = compare(spec, tmp_path / "jobs", costs=False, jobs=2)
    assert jobs.tuning == alone.tuning
    assert [r.results for r in jobs.records] == [r.results for r in alone.records]
