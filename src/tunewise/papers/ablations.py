"""The paper's ablations as specifications of sweeps (`tunewise sweep`): Tables 8 to 13 and Figure 6.

What each varies is the paper's. Which models Tables 10 to 13 are of is not among the figures kept here: they are laid
out as Tables 8 and 9 are, the even ones on DeBERTa v3 Base, the odd ones on ViT-Tiny, and any preset can be named.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunewise.catalog import get_method
from tunewise.errors import SpecError, suggest_nearest
from tunewise.papers.presets import Pair, comparison, get_pair, method
from tunewise.spec import DataSpec

_DEBERTA = ("deberta-v3-base/mrpc", "deberta-v3-base/trec50", "deberta-v3-base/paws")
_VIT = ("vit-tiny/officehome", "vit-tiny/cifar10")


def half_powers(first: float, last: float) -> list[str]:
    """Rates from 10^first to 10^last by half powers, as they are printed: 1e-6, 1e-5.5, ..."""
    steps = round(2 * (last - first))
    return [f"1e{first + place / 2:g}" for place in range(steps + 1)]


@dataclass(frozen=True, slots=True)
class Ablation:
    """`axes` are keys of a sweep with their values; `own` are keys of a method's preset that the axes replace."""

    key: str
    title: str
    presets: tuple[str, ...]
    axes: Mapping[str, Sequence[Any]]
    own: tuple[str, ...]
    chains_alone: bool = False
    select: Literal["metric"] | None = None


_DOUBLING = (2, 4, 8, 16, 32, 64, 128)
_ALPHAS = ("r/4", "r/2", "r", "2r", "4r")
_RESTARTS = (1, 2, 5, 10, 15, 20)
_FEW = (4, 8, 16)


def _rates(key: str, presets: tuple[str, ...], first: float, last: float) -> Ablation:
    axes = {"learning_rate": half_powers(first, last), "rank": _DOUBLING, "alpha": ("2r",)}
    return Ablation(key, "learning rate x rank", presets, axes, ("learning_rate", "rank", "alpha"))


def _alphas(key: str, presets: tuple[str, ...]) -> Ablation:
    return Ablation(key, "alpha x rank", presets, {"alpha": _ALPHAS, "rank": _FEW}, ("alpha", "rank"))


def _chains(key: str, presets: tuple[str, ...]) -> Ablation:
    axes = {"restart_every": _RESTARTS, "rank": _FEW, "alpha": ("2r",)}
    own = ("restart_every", "links", "rank", "alpha")
    return Ablation(key, "epochs between restarts x rank", presets, axes, own, chains_alone=True)


ABLATIONS: dict[str, Ablation] = {
    "8": _rates("8", _DEBERTA, -6, -2),
    "9": _rates("9", _VIT, -5, -1),
    "10": _alphas("10", _DEBERTA),
    "11": _alphas("11", _VIT),
    "12": _chains("12", _DEBERTA),
    "13": _chains("13", _VIT),
    "figure6": Ablation(
        "figure6",
        "exact match over ranks",
        ("deepseek-coder/django",),
        {"rank": _DOUBLING[2:], "alpha": ("2r",)},
        ("rank", "alpha"),
        select="metric",
    ),
}


def get_ablation(key: str) -> Ablation:
    """Raises `SpecError` for another table."""
    if key not in ABLATIONS:
        raise SpecError(f"no ablation {key!r}{suggest_nearest(key, ABLATIONS)}")
    return ABLATIONS[key]


def pairs_of(ablation: Ablation, presets: Sequence[str] = ()) -> list[Pair]:
    """The presets that it is of, or those that are named instead."""
    return [get_pair(key) for key in presets or ablation.presets]


def sweep(
    ablation: Ablation,
    data: Mapping[str, DataSpec],
    *,
    presets: Sequence[str] = (),
    methods: Sequence[str] = (),
    model: str | None = None,
    seeds: Sequence[int] = (),
    training: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of a sweep's specification. `data` has a prepared set for each preset, by the set's key.

    Methods that the axes mean nothing to are left out: full fine-tuning has no rank, and most methods no restarts.
    Raises `SpecError` where none is left, or the presets have different models.
    """
    pairs = pairs_of(ablation, presets)
    if len({pair.model.key for pair in pairs}) > 1:
        raise SpecError("one sweep, one model: name presets of the same model")
    points = []
    for pair in pairs:
        content = comparison(pair)
        chosen = [name for name in methods or pair.methods("main") if _applies(name, ablation)]
        if not chosen:
            raise SpecError(
                f"ablation {ablation.key}: none of the methods has what it varies; name others as --methods"
            )
        rows = [{k: v for k, v in method(name, pair).items() if k not in ablation.own} for name in chosen]
        settings = {**content["training"], **(training or {})}
        if ablation.select:
            settings["select"] = ablation.select
        points.append(
            {
                "task": pair.data.task,
                "metric": pair.data.metric,
                "data": data[pair.data.key].model_dump(mode="json", exclude_none=True, exclude_defaults=True),
                "methods": rows,
                "training": settings,
                "seeds": list(seeds) or content["seeds"],
            }
        )
    where = "Figure 6" if ablation.key == "figure6" else f"Table {ablation.key}"
    return {
        "title": f"{where} of arXiv 2606.13767: {ablation.title}",
        "model": model or pairs[0].model.hub,
        "data": copy.deepcopy(points[0]["data"]),  # so that a YAML file has no anchors
        **{key: list(values) for key, values in ablation.axes.items()},
        "points": points,
    }


def _applies(name: str, ablation: Ablation) -> bool:
    known = get_method(name)
    return known.adapts and (known.chain is not None or not ablation.chains_alone)
