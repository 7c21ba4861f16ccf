"""The paper's ablations as specs for `tunewise sweep`: Tables 8 to 13 and Figure 6.

The axes are the paper's. The models of Tables 10 to 13 are not among the numbers of the data folder; as in Tables 8 and
9, the even tables use DeBERTa v3 Base and the odd ones ViT-Tiny. Other presets can be named.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunewise.catalog import get_method
from tunewise.errors import SpecError, suggest_nearest
from tunewise.papers.presets import Preset, comparison, get_preset, method_content
from tunewise.spec import DataSpec

_DEBERTA = ("deberta-v3-base/mrpc", "deberta-v3-base/trec50", "deberta-v3-base/paws")
_VIT = ("vit-tiny/officehome", "vit-tiny/cifar10")
_DOUBLING = (2, 4, 8, 16, 32, 64, 128)
_ALPHAS = ("r/4", "r/2", "r", "2r", "4r")
_RESTARTS = (1, 2, 5, 10, 15, 20)
_FEW = (4, 8, 16)


def half_powers(first: float, last: float) -> list[str]:
    """Rates from 10^first to 10^last by half powers, in the printed form: 1e-6, 1e-5.5, ..."""
    return [f"1e{first + step / 2:g}" for step in range(round(2 * (last - first)) + 1)]


@dataclass(frozen=True, slots=True)
class Ablation:
    """`axes` are keys of a sweep with their values; they replace the same keys of a method's preset."""

    title: str
    presets: tuple[str, ...]
    axes: Mapping[str, Sequence[Any]]
    chains_only: bool = False
    select: Literal["metric"] | None = None

    def applies_to(self, name: str) -> bool:
        """False for full fine-tuning, which has no rank, and for methods without restarts where those vary."""
        method = get_method(name)
        return method.adapts and (method.chain is not None or not self.chains_only)

    def fixed_part(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of a method's preset that no axis replaces."""
        replaced = {*self.axes, *(["links"] if "restart_every" in self.axes else [])}
        return {key: value for key, value in content.items() if key not in replaced}


def _rates(presets: tuple[str, ...], first: float, last: float) -> Ablation:
    axes = {"learning_rate": half_powers(first, last), "rank": _DOUBLING, "alpha": ("2r",)}
    return Ablation("learning rate x rank", presets, axes)


def _alphas(presets: tuple[str, ...]) -> Ablation:
    return Ablation("alpha x rank", presets, {"alpha": _ALPHAS, "rank": _FEW})


def _chains(presets: tuple[str, ...]) -> Ablation:
    axes = {"restart_every": _RESTARTS, "rank": _FEW, "alpha": ("2r",)}
    return Ablation("epochs between restarts x rank", presets, axes, chains_only=True)


_FIGURE_6 = {"rank": _DOUBLING[2:], "alpha": ("2r",)}
ABLATIONS: dict[str, Ablation] = {
    "8": _rates(_DEBERTA, -6, -2),
    "9": _rates(_VIT, -5, -1),
    "10": _alphas(_DEBERTA),
    "11": _alphas(_VIT),
    "12": _chains(_DEBERTA),
    "13": _chains(_VIT),
    "figure6": Ablation("exact match over ranks", ("deepseek-coder/django",), _FIGURE_6, select="metric"),
}


def get_ablation(key: str) -> Ablation:
    """Raises `SpecError` for an unknown table."""
    if key not in ABLATIONS:
        raise SpecError(f"no ablation {key!r}{suggest_nearest(key, ABLATIONS)}")
    return ABLATIONS[key]


def presets_of(ablation: Ablation, names: Sequence[str] = ()) -> list[Preset]:
    """The ablation's presets, or the named ones instead."""
    return [get_preset(name) for name in names or ablation.presets]


def sweep(
    key: str,
    data: Mapping[str, DataSpec],
    *,
    presets: Sequence[str] = (),
    methods: Sequence[str] = (),
    model: str | None = None,
    seeds: Sequence[int] = (),
    epochs: int | None = None,
) -> dict[str, Any]:
    """The content of a sweep's spec, with `data` by the keys of data sets.

    Methods without the axes of the ablation are left out. Raises `SpecError` where none is left, or the presets have
    different models.
    """
    ablation = get_ablation(key)
    chosen = presets_of(ablation, presets)
    if len({preset.model.key for preset in chosen}) > 1:
        raise SpecError("one sweep, one model: name presets of the same model")
    points = []
    for preset in chosen:
        content = comparison(preset)
        names = [name for name in methods or preset.methods("main") if ablation.applies_to(name)]
        if not names:
            raise SpecError(f"ablation {key}: none of the methods has its axes; name others with --methods")
        training = {**content["training"], **({"epochs": epochs} if epochs else {})}
        if ablation.select:
            training["select"] = ablation.select
        points.append(
            {
                "task": preset.data.task,
                "metric": preset.data.metric,
                "data": data[preset.data.key].model_dump(mode="json", exclude_none=True, exclude_defaults=True),
                "methods": [ablation.fixed_part(method_content(name, preset)) for name in names],
                "training": training,
                "seeds": list(seeds) or content["seeds"],
            }
        )
    where = "Figure 6" if key == "figure6" else f"Table {key}"
    return {
        "title": f"{where} of arXiv 2606.13767: {ablation.title}",
        "model": model or chosen[0].model.hub,
        "data": copy.deepcopy(points[0]["data"]),  # so that a YAML file has no anchors
        **{axis: list(values) for axis, values in ablation.axes.items()},
        "points": points,
    }
