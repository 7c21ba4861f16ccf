"""The paper's printed figures, out of the package's data folder (arXiv 2606.13767v1; data/SOURCE.md says how they were
read). Values are in the printed units: per cent, nats, samples a second, minutes, GB.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache

from tunewise.papers.models import DATA

METHODS = {
    "FFT": "fft",
    "LoRA": "lora",
    "LoRA+": "lora+",
    "CoLA": "cola",
    "Asym": "asym",
    "RAC": "rac",
    "cLA": "cla",
    "r-cLA": "r-cla",
    "c3LA": "c3la",
    "r-c3LA": "r-c3la",
    "PaCA": "paca",
    "D-PaCA": "d-paca",
    "C-PaCA": "c-paca",
    # The paper's faster way to compute two of them, which is the only way here.
    "s-cLA": "cla",
    "s-r-c3LA": "r-c3la",
}
"""The paper's names of methods -> the catalog's."""

QUANTITIES = {
    "throughput_samples_per_s": "throughput (samples/s)",
    "runtime_minutes": "runtime (minutes)",
    "trainable_parameters": "trained parameters",
    "peak_gpu_memory_gb": "peak memory (GB)",
}
"""What Tables 14 and 15 print, in words."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One printed number. `text` is how it is printed, `ratio` its printed ratio to LoRA's."""

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
        return METHODS[self.method]


@dataclass(frozen=True, slots=True)
class Settings:
    """One row of Table 7. What it leaves empty is None."""

    model: str
    dataset: str
    schedule: str
    warmup_ratio: float
    rate_all: float
    rate_both: float
    rate_one: float
    restarts: int
    decay_all: float
    decay_adapter: float
    batch_size: int
    epochs: int
    size: int
    """The most tokens of a text, or pixels a side."""
    seeds: tuple[int, ...]
    clip: float | None


@dataclass(frozen=True, slots=True)
class Shares:
    """One row of Table 6: parameters as printed ("124.6M"), trained shares in per cent."""

    model: str
    dataset: str
    parameters: str
    lora: float
    asym: float


def cells(table: int) -> list[Cell]:
    """The cells of Table 2, 3, 4, 5, 14, 15, 16, 17 or 18, in the printed order. Raises `KeyError` for another."""
    return list(_cells(table))


@lru_cache
def _cells(table: int) -> tuple[Cell, ...]:
    if table in (2, 18):
        rows = [row for row in _read("table02_18_performance") if table == 18 or row["in_main_table_2"] == "1"]
        return tuple(_cell(row, row["value"], row["metric"]) for row in rows)
    if table in (3, 16):
        rows = [row for row in _read("table03_16_generalization_gap") if table == 16 or row["in_main_table_3"] == "1"]
        return tuple(_cell(row, row["as_printed"], "gap") for row in rows)
    if table == 17:
        return tuple(
            _cell(row, row["ratio_as_printed"], "gap / LoRA's") for row in _read("table17_generalization_gap_over_lora")
        )
    names = {4: "table04_paca_all_layers", 5: "table05_paca_query_value"}
    names |= {14: "table14_efficiency_all_layers", 15: "table15_efficiency_query_value"}
    quantity = "metric" if table in (4, 5) else "quantity"
    return tuple(
        _cell(row, row["value"], row[quantity], row["ratio_to_lora_as_printed"]) for row in _read(names[table])
    )


def _cell(row: dict[str, str], text: str, quantity: str, ratio: str = "") -> Cell:
    value, said = float(text), QUANTITIES.get(quantity, quantity)
    return Cell(row["model"], row["dataset"], row["method"], said, value, text, float(ratio) if ratio else None)


@lru_cache
def settings() -> tuple[Settings, ...]:
    """Table 7."""
    return tuple(
        Settings(
            model=row["model"],
            dataset=row["dataset"],
            schedule=row["scheduler"],
            warmup_ratio=float(row["warmup_ratio"] or 0.0),
            rate_all=float(row["lr_fft"]),
            rate_both=float(row["lr_lora_A_and_B_trained"]),
            rate_one=float(row["lr_asym_only_B_trained"]),
            restarts=int(row["chain_reset_frequency"]),
            decay_all=float(row["weight_decay_fft"]),
            decay_adapter=float(row["weight_decay_lora"]),
            batch_size=int(row["batch_size"]),
            epochs=int(row["epochs"]),
            size=int(row["max_length_tokens_or_image_size"]),
            seeds=tuple(map(int, row["seeds"].split())),
            clip=float(row["grad_clip_global_l2"]) if row["grad_clip_global_l2"] else None,
        )
        for row in _read("table07_hyperparameters")
    )


@lru_cache
def shares() -> tuple[Shares, ...]:
    """Table 6."""
    return tuple(
        Shares(
            row["model"],
            row["dataset"],
            row["fft_trainable_parameters_as_printed"],
            float(row["lora_trainable_pct"]),
            float(row["asym_trainable_pct"]),
        )
        for row in _read("table06_trainable_parameters")
    )


@lru_cache
def bounds() -> tuple[tuple[str, str, str], ...]:
    """Table 1: method, the parameters of a layer as a formula in n, m, r, k, and where the paper prints otherwise."""
    return tuple(
        (row["method"], row["parameters_of_a_layer"], row["printed_differently"]) for row in _read("table01_bounds")
    )


def _read(name: str) -> list[dict[str, str]]:
    with (DATA / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
