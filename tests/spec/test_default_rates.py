"""Default learning rates: near the tuned ones on encoders, the published ones on language models."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from contracts.toy_task import Tagging
from tunewise.catalog import CATALOG, Chain, Method, get_method
from tunewise.default_rates import Regime, default_rate
from tunewise.peft_methods import PEFT_METHODS
from tunewise.registry import TASKS
from tunewise.spec import RunSpec
from tunewise.tasks.causal import CausalLanguage

TUNED = Path(__file__).parents[2] / "docs" / "evidence" / "tuned_rates.csv"


def tuned_rates() -> list[dict[str, str]]:
    with TUNED.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", tuned_rates(), ids=lambda row: f"{row['data']}-{row['method']}")
def test_a_default_is_within_a_factor_of_3_of_the_tuned_rate(row: dict[str, str]) -> None:
    ratio = default_rate(CATALOG[row["method"]], "encoder") / float(row["rate"])
    assert 1 / 3.01 <= ratio <= 3.01  # rates of a search are a factor of 3 apart, and rounded here


def test_every_method_was_tuned_on_at_least_one_data_set() -> None:
    assert {row["method"] for row in tuned_rates()} == set(CATALOG)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("fft", 1e-5),
        ("lora", 2e-4),
        ("asym", 5e-4),
        ("cla", 5e-4),
        ("paca", 4e-4),
        ("lora+", 5e-5),
        ("peft:vera", 5e-3),
    ],
)
def test_language_models_get_the_published_rate(name: str, rate: float) -> None:
    content = {"model": {"path": "m"}, "data": {"path": "d.csv"}, "method": {"name": name}}
    for task in ("causal", "generation"):
        assert RunSpec.model_validate({**content, "task": task}).learning_rate == rate


def test_own_methods_take_the_rate_of_what_they_train() -> None:
    row = Method("B", "sampled", chain=Chain(links=2), name="mine")
    assert default_rate(row, "encoder") == default_rate(CATALOG["r-cla"], "encoder")


@pytest.mark.parametrize("regime", ["encoder", "language"])
def test_every_method_of_peft_has_a_rate(regime: Regime) -> None:
    for name in PEFT_METHODS:
        assert 1e-5 < default_rate(get_method(f"peft:{name}"), regime) <= 0.1


def test_a_task_of_one_file_names_its_own_regime() -> None:
    class Poems(CausalLanguage):
        pass

    content = {"model": {"path": "m"}, "data": {"path": "d.csv"}, "method": {"name": "lora"}, "task": "poems"}
    for task, rate in ((Poems, 2e-4), (Tagging, 1e-2)):
        TASKS.register("poems", task)
        assert RunSpec.model_validate(content).learning_rate == rate
    TASKS.unregister("poems")
