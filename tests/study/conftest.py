"""A sweep over two methods, three rates and two seeds on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tunewise.spec import StudySpec, parse


@pytest.fixture
def content(tiny_model: Path, toy_csv: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_model),
        "data": str(toy_csv),
        "methods": ["lora", "cla"],
        "rank": [2, 4],
        "learning_rate": [1e-3, 1e-2],
        "seeds": 2,
        "training": {"epochs": 2, "batch_size": 8, "max_length": 16},
    }


@pytest.fixture
def spec(content: dict[str, Any]) -> StudySpec:
    return parse(StudySpec, content)


@pytest.fixture
def file(content: dict[str, Any], tmp_path: Path) -> Path:
    """Two runs: what is really trained."""
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"title": "Toys", **content, "rank": 4, "learning_rate": 1e-2, "seeds": [0]}))
    return path
