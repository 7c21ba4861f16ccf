"""A model, a data set and a table of the paper -> the content of a comparison, with Table 7's hyperparameters.

What the paper's tables don't say is taken from what its authors published with them: alpha is 2 r, adapters on query
and value where no table says otherwise, N(0, 0.02^2) for a random A; and Table 7's "chain reset frequency" counts
epochs between restarts in one half of the experiments and restarts in the other (`PaperModel.chains`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tunewise.catalog import get_method
from tunewise.errors import SpecError, suggest_nearest
from tunewise.papers.models import MODELS, PaperModel, get_model
from tunewise.papers.printed import Settings, cells, settings
from tunewise.papers.sets import SETS, PaperSet, get_set

RANK = 16
NOT_CLIPPED = 1e9  # where the paper gives no bound on gradients
Setting = Literal["main", "all-linear", "query-value"]

SETTINGS: dict[int, Setting] = {
    **dict.fromkeys((2, 3, 16, 17, 18), "main"),
    **dict.fromkeys((4, 14), "all-linear"),
    **dict.fromkeys((5, 15), "query-value"),
}
"""Which of the three sets of experiments a table shows."""

_PACA_EPOCHS = 30
_PACA_SEEDS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Pair:
    """One of the paper's 24 models on data sets, with its row of Table 7."""

    model: PaperModel
    data: PaperSet
    settings: Settings

    @property
    def key(self) -> str:
        """`roberta-base/mrpc`"""
        return f"{self.model.key}/{self.data.key}"

    def methods(self, setting: Setting) -> list[str]:
        """Catalog names of the methods that the paper ran, in its order."""
        table = {"main": 18, "all-linear": 4, "query-value": 5}[setting]
        found = [c.catalog for c in cells(table) if (c.model, c.dataset) == (self.model.printed, self.data.printed)]
        return list(dict.fromkeys(found))


def pairs() -> list[Pair]:
    """All 24, in Table 7's order."""
    models = {row.printed: row for row in MODELS.values()}
    sets = {row.printed: row for row in SETS.values()}
    return [Pair(models[row.model], sets[row.dataset], row) for row in settings()]


def get_pair(key: str) -> Pair:
    """By `MODEL/DATA`. Raises `SpecError` for a name that the paper does not have, or a pair that it did not run."""
    model, _, data = key.partition("/")
    get_model(model)
    get_set(data)
    found = {pair.key: pair for pair in pairs()}
    if key not in found:
        raise SpecError(f"the paper has no {key!r}{suggest_nearest(key, found)}")
    return found[key]


def comparison(pair: Pair, setting: Setting = "main", methods: list[str] | None = None) -> dict[str, Any]:
    """The content of a `StudySpec` but for `data`; its model is the hub's.

    Raises `SpecError` where the paper did not run this pair in this setting.
    """
    ran = pair.methods(setting)
    if not ran:
        raise SpecError(
            f"the paper's experiments on {setting.replace('-', ' ')} layers do not have {pair.key!r}; it has "
            + ", ".join(other.key for other in pairs() if other.methods(setting))
        )
    row, paca = pair.settings, setting != "main"
    return {
        "task": pair.data.task,
        "model": {"path": pair.model.hub},
        "methods": [method(name, pair, setting) for name in methods or ran],
        "training": {
            "epochs": _PACA_EPOCHS if paca else row.epochs,
            "batch_size": row.batch_size,
            "warmup_ratio": row.warmup_ratio,
            "schedule": row.schedule,
            "max_grad_norm": row.clip or NOT_CLIPPED,
            "select": pair.data.select,
            **({"max_length": row.size} if pair.data.of_texts else {}),
        },
        "seeds": list(_PACA_SEEDS if paca else row.seeds),
        "reference": "lora" if "lora" in (methods or ran) else (methods or ran)[0],
        "metric": pair.data.metric,
    }


def method(name: str, pair: Pair, setting: Setting = "main", rank: int = RANK) -> dict[str, Any]:
    """One method's part of a comparison: its rate, weight decay, rank, layers, law of A and restarts."""
    row, known = pair.settings, get_method(name)
    if not known.adapts:
        return {"name": name, "learning_rate": row.rate_all, "weight_decay": row.decay_all}
    both = known.trained in ("AB", "peft")
    content: dict[str, Any] = {
        "name": name,
        "rank": rank,
        "alpha": 2.0 * rank,
        "targets": "all-linear" if setting == "all-linear" else "qv",
        "learning_rate": row.rate_both if both else row.rate_one,
        "weight_decay": row.decay_adapter,
    }
    if known.where == "random":
        content["a_law"] = "normal"
    if known.chain is not None:
        content |= restarts(pair)
    return content


def restarts(pair: Pair) -> dict[str, int]:
    """Table 7's chain reset frequency, as `restart_every` or `links`."""
    if pair.model.chains == "epochs between restarts":
        return {"restart_every": pair.settings.restarts}
    return {"links": pair.settings.restarts + 1}
