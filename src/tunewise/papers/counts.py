"""Table 6, counted: parameters and trained shares of the 24 presets, from configurations without weights.

Shares are of rank 16 on query and value with the task head. The printed table divides by the model with its head in
some rows and by model and adapter in others; each row names the reading that agrees.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

from tunewise.models.head import Head
from tunewise.models.load import load_config
from tunewise.papers.models import get_model
from tunewise.papers.presets import RANK, Preset, presets_by_printed
from tunewise.papers.printed import TrainedShares, trained_shares
from tunewise.papers.sheet import Sheet, SheetColumn
from tunewise.spec import MethodSpec, ModelSpec
from tunewise.store.records import ModelFacts
from tunewise.study.plan import count_method
from tunewise.tasks.build import task_class

_UNITS = {"M": 1e6, "B": 1e9}
_ROUNDING = 0.00051  # of three decimals


@dataclass(frozen=True, slots=True)
class Reading:
    """What a printed share may count."""

    name: str
    with_adapter: bool = False
    with_head: bool = True
    with_keys: bool = False


OF_MODEL, OF_MODEL_AND_ADAPTER = Reading("shares of the model"), Reading("shares of model and adapter", True)
READINGS = (
    OF_MODEL,
    OF_MODEL_AND_ADAPTER,
    Reading("shares without the head", with_head=False),
    Reading("shares with all key projections trained", True, with_keys=True),
)


@dataclass(frozen=True, slots=True)
class Count:
    """One row: exact counts, and the printed ones."""

    preset: Preset
    printed: TrainedShares
    parameters: int
    lora: ModelFacts
    asym: ModelFacts
    keys: int
    """Parameters of the key projections, where query, key and value share a weight."""

    def share(self, facts: ModelFacts, reading: Reading) -> float:
        """Trained parameters in per cent of all."""
        trained = (facts.trainable if reading.with_head else facts.adapter) + reading.with_keys * self.keys
        return 100 * trained / (self.parameters + reading.with_adapter * self.lora.adapter)

    @property
    def verdict(self) -> str:
        """The reading that agrees with the printed shares, and the parameters where those differ."""
        possible = [reading for reading in READINGS if self.keys or not reading.with_keys]
        names = [reading.name for reading in possible if self._agrees(reading)]
        unit, decimals = self.printed.parameters[-1], len(self.printed.parameters[:-1].split(".")[1])
        ours = f"{self.parameters / _UNITS[unit]:.{decimals}f}{unit}"
        differs = [] if ours == self.printed.parameters else [f"parameters: ours is {ours}"]
        return "; ".join([names[0] if names else "shares differ", *differs])

    def _agrees(self, reading: Reading) -> bool:
        pairs = ((self.lora, self.printed.lora), (self.asym, self.printed.asym))
        return all(abs(self.share(facts, reading) - printed) <= _ROUNDING for facts, printed in pairs)


def counts(only: Collection[str] = ()) -> list[Count]:
    """The rows of Table 6 in its order: all, or those of the presets in `only`."""
    by_printed = presets_by_printed()
    rows = []
    for row in trained_shares():
        preset = by_printed[row.model, row.dataset]
        if only and preset.key not in only:
            continue
        full, lora, asym = (_facts(preset.model.key, head_of(preset), name) for name in ("fft", "lora", "asym"))
        rows.append(Count(preset, row, full.parameters, lora, asym, _fused_keys(preset)))
    return rows


_COLUMNS: list[SheetColumn[Count]] = [
    SheetColumn("model", "model", lambda row: row.preset.printed[0], right=False),
    SheetColumn("dataset", "data", lambda row: row.preset.printed[1], right=False),
    SheetColumn("parameters", "parameters", lambda row: float(row.parameters), ",.0f"),
    SheetColumn("parameters_printed", "printed", lambda row: row.printed.parameters),
    SheetColumn("lora_pct", "LoRA %", lambda row: row.share(row.lora, OF_MODEL), ".3f"),
    SheetColumn("lora_pct_of_model_and_adapter", "", lambda row: row.share(row.lora, OF_MODEL_AND_ADAPTER)),
    SheetColumn("lora_pct_printed", "printed", lambda row: row.printed.lora, ".3f"),
    SheetColumn("asym_pct", "Asym %", lambda row: row.share(row.asym, OF_MODEL), ".3f"),
    SheetColumn("asym_pct_of_model_and_adapter", "", lambda row: row.share(row.asym, OF_MODEL_AND_ADAPTER)),
    SheetColumn("asym_pct_printed", "printed", lambda row: row.printed.asym, ".3f"),
    SheetColumn("print", "printed shares are", lambda row: row.verdict, right=False),
]


def sheet() -> Sheet:
    """Table 6 beside the printed one."""
    legend = [
        f"Counted from each model's configuration: rank {RANK} on query and value, task head included; shares of the "
        "model with its head (CSV also has shares of model and adapter).",
        "The printed shares of DeBERTa v2 XXL leave the head out. Those of GPT-2 need all key projections trained in "
        "full, which no adapter here does.",
        "The printed parameters of TinyLlama leave its language-model head out, those of Llama3-8B include it; "
        "both were trained as classifiers: ours leave it out.",
    ]
    title = "Table 6 of arXiv 2606.13767: trained parameters, counted and printed"
    return Sheet(title, _COLUMNS, counts(), legend, headings=1)


def head_of(preset: Preset) -> Head:
    """The task head of the preset's experiments."""
    return task_class(preset.data.task).make_head([f"class {n}" for n in range(preset.data.classes)])


@cache
def _facts(model: str, head: Head, method: str) -> ModelFacts:
    return count_method(ModelSpec(path=str(get_model(model).config)), MethodSpec(name=method, rank=RANK), head)


def _fused_keys(preset: Preset) -> int:
    """GPT-2 keeps query, key and value in one weight with a bias."""
    config = load_config(ModelSpec(path=str(preset.model.config)))
    return config.n_layer * (config.n_embd + 1) * config.n_embd if config.model_type == "gpt2" else 0
