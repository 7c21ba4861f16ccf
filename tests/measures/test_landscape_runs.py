"""Landscapes of runs: first seeds alone, other settings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from test_run import make_spec
from tunewise.errors import SpecError
from tunewise.measures.collect import collect
from tunewise.registry import MEASURES
from tunewise.run import run
from tunewise.store.folders import RunStore
from tunewise.store.records import RunRecord
from tunewise.tasks.build import build_task
from tunewise.training.events import Listener

SETTINGS: dict[str, object] = {"grid": 5, "batches": 2}


@dataclass(frozen=True)
class Runs:
    """Finished runs of some methods and seeds."""

    model: Path
    data: Path
    store: RunStore
    methods: tuple[str, ...] = ("lora", "head")
    seeds: tuple[int, ...] = (0, 1)

    def records(self) -> list[RunRecord]:
        specs = [make_spec(self.model, self.data, m, seed=seed) for seed in self.seeds for m in self.methods]
        return [run(spec, self.store) for spec in specs]

    def measure(self, records: list[RunRecord], **settings: object) -> dict[tuple[str, int], dict[str, Any]]:
        """Values by method and seed."""
        task = build_task(records[0].spec)
        given = {"landscape": {**SETTINGS, **settings}}
        found = collect(["landscape"], records, self.store, task, Listener(), given)["landscape"]
        names = {r.id: (r.spec.method.name, r.spec.seed) for r in records}
        return {names[run_id]: measured.values or {} for run_id, measured in found.items()}


@pytest.fixture
def runs(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> Runs:
    return Runs(tiny_model, toy_csv, RunStore(tmp_path))


@pytest.mark.slow
def test_first_seeds_are_drawn(runs: Runs, tmp_path: Path) -> None:
    first = runs.measure(runs.records())
    assert set(first) == {("lora", 0), ("head", 0)}
    for values in first.values():
        surface = values["surface"]
        assert np.array(surface["loss"]).shape == (5, 5)
        assert surface["x"] == surface["y"] == [-2, -1, 0, 1, 2]
        assert surface["loss"][2][2] == pytest.approx(values["loss"]["value"], rel=1e-6)
        assert values["sharpness"]["low"] <= values["sharpness"]["value"] <= values["sharpness"]["high"]
    assert runs.measure(runs.records()) == first  # read


@pytest.mark.slow
def test_other_settings_compute_it_again_and_the_same_ones_do_not(runs: Runs, tmp_path: Path) -> None:
    records = runs.records()[:1]
    runs.measure(records)
    file = next(tmp_path.glob("*/measures/landscape.json"))
    time = file.stat().st_mtime_ns
    runs.measure(records)
    assert file.stat().st_mtime_ns == time
    runs.measure(records, grid=3)
    assert len(json.loads(file.read_text())["values"]["surface"]["x"]) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"kind": "random"}, "measure landscape: unknown key 'kind'"), ({"grid": 1}, "grid = 1: input should be greater")],
)
def test_wrong_settings_are_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message) as error:
        MEASURES.get("landscape").parse_settings(settings)
    assert "\n" not in str(error.value)
