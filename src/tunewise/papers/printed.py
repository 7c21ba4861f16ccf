"""The paper's printed numbers (arXiv 2606.13767v1), read from the package's data folder.

Values have the printed units: per cent, nats, samples a second, minutes, GB. data/SOURCE.md describes the files.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field

from tunewise.papers.models import DATA

QUANTITIES = {
    "throughput_samples_per_s": "throughput (samples/s)",
    "runtime_minutes": "runtime (minutes)",
    "trainable_parameters": "trained parameters",
    "peak_gpu_memory_gb": "peak memory (GB)",
}
"""The quantities of Tables 14 and 15."""

_FILES = {
    2: "table02_18_performance",
    3: "table03_16_generalization_gap",
    4: "table04_paca_all_layers",
    5: "table05_paca_query_value",
    14: "table14_efficiency_all_layers",
    15: "table15_efficiency_query_value",
    16: "table03_16_generalization_gap",
    17: "table17_generalization_gap_over_lora",
    18: "table02_18_performance",
}


def catalog_name(method: str) -> str:
    """The catalog's name of a method. s- is the paper's faster computation, which is the only one here."""
    return method.removeprefix("s-").lower()


@dataclass(frozen=True, slots=True)
class PrintedNumber:
    """One printed number. `text` is its printed form, `ratio` its printed ratio to LoRA's."""

    model: str
    dataset: str
    method: str
    quantity: str
    value: float
    text: str
    ratio: float | None = None

    @property
    def catalog(self) -> str:
        """The method's name in the catalog."""
        return catalog_name(self.method)


class Hyperparameters(BaseModel, frozen=True):
    """One row of Table 7. Fields are read from the columns of the file."""

    model: str
    dataset: str
    schedule: str = Field(alias="scheduler")
    warmup_ratio: float = 0.0
    rate_all: float = Field(alias="lr_fft")
    rate_both: float = Field(alias="lr_lora_A_and_B_trained")
    rate_one: float = Field(alias="lr_asym_only_B_trained")
    restarts: int = Field(alias="chain_reset_frequency")
    decay_all: float = Field(alias="weight_decay_fft")
    decay_adapter: float = Field(alias="weight_decay_lora")
    batch_size: int
    epochs: int
    size: int = Field(alias="max_length_tokens_or_image_size")
    """Maximum tokens of a text, or pixels a side."""
    seeds: Annotated[tuple[int, ...], BeforeValidator(str.split)]
    clip: float | None = Field(None, alias="grad_clip_global_l2")


@dataclass(frozen=True, slots=True)
class TrainedShares:
    """One row of Table 6: parameters as printed ("124.6M"), trained shares in per cent."""

    model: str
    dataset: str
    parameters: str
    lora: float
    asym: float


@cache
def printed_numbers(table: int) -> tuple[PrintedNumber, ...]:
    """Table 2, 3, 4, 5, 14, 15, 16, 17 or 18 in the printed order. Raises `KeyError` for another."""
    rows = _read(_FILES[table])
    if table in (2, 3):
        rows = [row for row in rows if row[f"in_main_table_{table}"] == "1"]
    return tuple(_number(table, row) for row in rows)


def _number(table: int, row: dict[str, str]) -> PrintedNumber:
    if table in (3, 16):
        text, quantity = row["as_printed"], "gap"
    elif table == 17:
        text, quantity = row["ratio_as_printed"], "gap / LoRA's"
    else:
        text, quantity = row["value"], row["quantity"] if table in (14, 15) else row["metric"]
    ratio = row.get("ratio_to_lora_as_printed")
    name = QUANTITIES.get(quantity, quantity)
    place = row["model"], row["dataset"], row["method"]
    return PrintedNumber(*place, name, float(text), text, float(ratio) if ratio else None)


@cache
def hyperparameters() -> tuple[Hyperparameters, ...]:
    """Table 7."""
    rows = _read("table07_hyperparameters")
    return tuple(Hyperparameters.model_validate({k: v for k, v in row.items() if v}) for row in rows)


@cache
def trained_shares() -> tuple[TrainedShares, ...]:
    """Table 6."""
    total, lora, asym = "fft_trainable_parameters_as_printed", "lora_trainable_pct", "asym_trainable_pct"
    return tuple(
        TrainedShares(row["model"], row["dataset"], row[total], float(row[lora]), float(row[asym]))
        for row in _read("table06_trainable_parameters")
    )


@cache
def bound_formulas() -> tuple[tuple[str, str, str], ...]:
    """Table 1: method, the parameters of a layer as a formula in n, m, r, k, and how the printed formula differs."""
    return tuple(
        (row["method"], row["parameters_of_a_layer"], row["printed_differently"]) for row in _read("table01_bounds")
    )


def _read(name: str) -> list[dict[str, str]]:
    with (DATA / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
