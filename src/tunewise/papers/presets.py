"""A model, a data set and a table of the paper -> the content of a comparison, with Table 7's hyperparameters.

What the tables do not state is taken from the authors' published code: alpha is 2 r, adapters are on query and value
unless a table says otherwise, a random A is N(0, 0.02^2), and Table 7's "chain reset frequency" counts epochs between
restarts in one half of the experiments and restarts in the other (`PaperModel.restarts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tunewise.catalog import get_method
from tunewise.errors import SpecError, suggest_nearest
from tunewise.papers.models import MODELS, PaperModel, get_model
from tunewise.papers.printed import Hyperparameters, hyperparameters, printed_numbers
from tunewise.papers.sets import SETS, PaperSet, get_set

RANK = 16
NOT_CLIPPED = 1e9  # where the paper gives no bound on gradients
Setting = Literal["main", "all-linear", "query-value"]

SETTINGS: dict[int, Setting] = {
    **dict.fromkeys((2, 3, 16, 17, 18), "main"),
    **dict.fromkeys((4, 14), "all-linear"),
    **dict.fromkeys((5, 15), "query-value"),
}
"""Table -> its set of experiments."""

_METHODS_TABLE = {"main": 18, "all-linear": 4, "query-value": 5}
_PACA_EPOCHS = 30
_PACA_SEEDS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Preset:
    """One of the paper's 24 models on data sets, with its row of Table 7."""

    model: PaperModel
    data: PaperSet
    settings: Hyperparameters

    @property
    def key(self) -> str:
        """`roberta-base/mrpc`"""
        return f"{self.model.key}/{self.data.key}"

    @property
    def printed(self) -> tuple[str, str]:
        """Model and data set as in the paper's tables."""
        return self.model.printed, self.data.printed

    def methods(self, setting: Setting) -> list[str]:
        """Catalog names of the methods in the paper's experiments, in the paper's order."""
        numbers = printed_numbers(_METHODS_TABLE[setting])
        return list(dict.fromkeys(n.catalog for n in numbers if (n.model, n.dataset) == self.printed))


def presets() -> list[Preset]:
    """All 24, in Table 7's order."""
    models = {row.printed: row for row in MODELS.values()}
    sets = {row.printed: row for row in SETS.values()}
    return [Preset(models[row.model], sets[row.dataset], row) for row in hyperparameters()]


def presets_by_printed() -> dict[tuple[str, str], Preset]:
    """By model and data set as in the paper's tables."""
    return {preset.printed: preset for preset in presets()}


def get_preset(key: str) -> Preset:
    """By `MODEL/DATA`. Raises `SpecError` for an unknown name, or a pair that is not in the paper."""
    model, _, data = key.partition("/")
    get_model(model)
    get_set(data)
    by_key = {preset.key: preset for preset in presets()}
    if key not in by_key:
        raise SpecError(f"the paper has no {key!r}{suggest_nearest(key, by_key)}")
    return by_key[key]


def comparison(preset: Preset, setting: Setting = "main", methods: list[str] | None = None) -> dict[str, Any]:
    """The content of a comparison's spec without `data`; its model is the hub's.

    Raises `SpecError` where the paper has no such experiment.
    """
    in_paper = preset.methods(setting)
    if not in_paper:
        available = ", ".join(other.key for other in presets() if other.methods(setting))
        layers = setting.replace("-", " ")
        raise SpecError(f"the paper has no experiment on {layers} layers with {preset.key!r}; it has {available}")
    row, names, is_paca = preset.settings, methods or in_paper, setting != "main"
    return {
        "task": preset.data.task,
        "model": {"path": preset.model.hub},
        "methods": [method_content(name, preset, setting) for name in names],
        "training": {
            "epochs": _PACA_EPOCHS if is_paca else row.epochs,
            "batch_size": row.batch_size,
            "warmup_ratio": row.warmup_ratio,
            "schedule": row.schedule,
            "max_grad_norm": row.clip or NOT_CLIPPED,
            "select": preset.data.select,
            **({"max_length": row.size} if preset.data.has_texts else {}),
        },
        "seeds": list(_PACA_SEEDS if is_paca else row.seeds),
        "reference": "lora" if "lora" in names else names[0],
        "metric": preset.data.metric,
    }


def method_content(name: str, preset: Preset, setting: Setting = "main") -> dict[str, Any]:
    """One method's part of a comparison: rate, weight decay, rank, layers, distribution of A and restarts."""
    row, method = preset.settings, get_method(name)
    if not method.adapts:
        return {"name": name, "learning_rate": row.rate_all, "weight_decay": row.decay_all}
    content: dict[str, Any] = {
        "name": name,
        "rank": RANK,
        "alpha": 2.0 * RANK,
        "targets": "all-linear" if setting == "all-linear" else "qv",
        "learning_rate": row.rate_both if method.trained in ("AB", "peft") else row.rate_one,
        "weight_decay": row.decay_adapter,
    }
    if method.where == "random":
        content["lora_a_init"] = "normal"
    if method.chain is not None:
        content |= restarts(preset)
    return content


def restarts(preset: Preset) -> dict[str, int]:
    """Table 7's chain reset frequency, as `restart_every` or `links`."""
    if preset.model.restarts == "epochs between restarts":
        return {"restart_every": preset.settings.restarts}
    return {"links": preset.settings.restarts + 1}
