"""Table 6, counted: parameters and trained shares of the 24 models on data sets, from configurations alone.

Shares are of rank 16 on query and value with the task head, and can be taken of two totals: the model with its head,
or that and the adapter. The print uses now one, now the other; each row says which it agrees with.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from tunewise.models.head import Head
from tunewise.models.load import load_config
from tunewise.papers.presets import RANK, Pair, pairs
from tunewise.papers.printed import Shares, shares
from tunewise.papers.sheet import Column, Entry, Sheet, name
from tunewise.planning import facts_of_method
from tunewise.spec import MethodSpec, ModelSpec
from tunewise.store.records import ModelFacts
from tunewise.tasks.build import task_class

_UNITS = {"M": 1e6, "B": 1e9}
_ROUNDING = 0.00051  # of three decimals
_READINGS = {
    "shares of the model": {"with_adapter": False},
    "shares of model and adapter": {"with_adapter": True},
    "shares without the head": {"with_adapter": False, "with_head": False},
    "shares with all key projections trained": {"with_adapter": True, "with_keys": True},
}
"""What printed shares can be of; the first that agrees is named."""


@dataclass(frozen=True, slots=True)
class Count:
    """One row: exact counts, and the printed ones."""

    pair: Pair
    printed: Shares
    parameters: int
    lora: ModelFacts
    asym: ModelFacts
    keys: int
    """Parameters of the key projections, where query, key and value share a weight."""

    def share(self, method: str, *, with_adapter: bool, with_head: bool = True, with_keys: bool = False) -> float:
        """Per cent of all parameters that are trained; the adapter is counted among all, or is not."""
        facts = {"lora": self.lora, "asym": self.asym}[method]
        trained = (facts.trainable if with_head else facts.adapter) + (self.keys if with_keys else 0)
        return 100 * trained / (self.parameters + (self.lora.adapter if with_adapter else 0))

    @property
    def verdict(self) -> str:
        """Where the print agrees and where it does not."""
        said = []
        unit = self.printed.parameters[-1]
        places = len(self.printed.parameters[:-1].split(".")[1])
        if f"{self.parameters / _UNITS[unit]:.{places}f}{unit}" != self.printed.parameters:
            said.append(f"parameters: ours is {self.parameters / _UNITS[unit]:.{places}f}{unit}")
        for words, counted in _READINGS.items():
            if (self.keys or not counted.get("with_keys")) and self._agrees(**counted):
                return "; ".join([words, *said])
        return "; ".join(["shares differ", *said])

    def _agrees(self, **counted: bool) -> bool:
        printed = {"lora": self.printed.lora, "asym": self.printed.asym}
        return all(abs(self.share(method, **counted) - share) <= _ROUNDING for method, share in printed.items())


def counts(only: Collection[str] = ()) -> list[Count]:
    """The rows of Table 6, in its order: all, or `only` some pairs."""
    by_name = {(pair.model.printed, pair.data.printed): pair for pair in pairs()}
    found = []
    for row in shares():
        pair = by_name[row.model, row.dataset]
        if only and pair.key not in only:
            continue
        made = {name: _facts(pair.model.key, head_of(pair), name) for name in ("fft", "lora", "asym")}
        found.append(Count(pair, row, made["fft"].parameters, made["lora"], made["asym"], _fused_keys(pair)))
    return found


def sheet() -> Sheet:
    """Table 6 beside the printed one."""
    columns = [
        Column("model", "model", right=False),
        Column("dataset", "data", right=False),
        Column("parameters", "parameters"),
        Column("parameters_printed", "printed"),
        Column("lora_pct", "LoRA %"),
        Column("lora_pct_of_model_and_adapter", "", "csv"),
        Column("lora_pct_printed", "printed"),
        Column("asym_pct", "Asym %"),
        Column("asym_pct_of_model_and_adapter", "", "csv"),
        Column("asym_pct_printed", "printed"),
        Column("print", "the print is", right=False),
    ]
    rows = []
    for row in counts():
        cells = [name(row.pair.model.printed), name(row.pair.data.printed)]
        cells += [Entry(f"{row.parameters:,}", float(row.parameters)), name(row.printed.parameters)]
        for method, printed in (("lora", row.printed.lora), ("asym", row.printed.asym)):
            share = row.share(method, with_adapter=False)
            cells += [Entry(f"{share:.3f}", share), Entry("", row.share(method, with_adapter=True))]
            cells.append(Entry(f"{printed:.3f}", printed))
        rows.append([*cells, name(row.verdict)])
    legend = [
        f"Counted from each model's configuration: rank {RANK} on query and value, task head included; shares of the "
        "model with its head (CSV has those of model and adapter, too).",
        "The print takes shares now of one total and now of the other, and those of DeBERTa v2 XXL leave its head out; "
        "GPT-2's are had only with all key projections trained in full, which no adapter of these does.",
        "The printed parameters of TinyLlama leave its language-model head out, those of Llama3-8B keep it, though "
        "both were trained as classifiers: ours leave it out.",
    ]
    return Sheet("Table 6 of arXiv 2606.13767: trained parameters, counted and printed", columns, rows, legend)


def head_of(pair: Pair) -> Head:
    return task_class(pair.data.task).make_head([f"class {n}" for n in range(pair.data.classes)])


@lru_cache(maxsize=128)
def _facts(model: str, head: Head, method: str) -> ModelFacts:
    from tunewise.papers.models import get_model

    return facts_of_method(ModelSpec(path=str(get_model(model).config)), MethodSpec(name=method, rank=RANK), head)


def _fused_keys(pair: Pair) -> int:
    """GPT-2 keeps query, key and value in one weight with a bias."""
    config = load_config(ModelSpec(path=str(pair.model.config)))
    return config.n_layer * (config.n_embd + 1) * config.n_embd if config.model_type == "gpt2" else 0
