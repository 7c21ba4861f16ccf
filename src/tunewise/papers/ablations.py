"""The paper's ablations as specs for `tunewise sweep`: Tables 8 to 13 and Figure 6.

The axes are the paper's. The models of Tables 10 to 13 are not among the numbers of the data folder; as in Tables 8 and
9, the even tables use DeBERTa v3 Base and the odd ones ViT-Tiny. Other presets can be named.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from tunewise.catalog import get_method
from tunewise.errors import SpecError, suggest_nearest
from tunewise.papers.models import DATA
from tunewise.papers.presets import Preset, comparison, get_preset, method_content
from tunewise.spec import DataSpec, merge_specs


class Ablation(BaseModel, frozen=True, extra="forbid"):
    """`axes` are keys of a sweep with their values; they replace the same keys of a method's preset."""

    title: str
    presets: tuple[str, ...]
    axes: dict[str, list[int | str]]
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


ABLATIONS = {
    key: Ablation.model_validate(fields)
    for key, fields in yaml.safe_load((DATA / "ablations.yaml").read_text(encoding="utf-8")).items()
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
    given: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The content of a sweep's spec, with `data` by the keys of data sets and what is `given` instead of the preset's.

    Methods without the axes of the ablation are left out. Raises `SpecError` where none is left, or the presets have
    different models.
    """
    ablation = get_ablation(key)
    chosen = presets_of(ablation, presets)
    if len({preset.model.key for preset in chosen}) > 1:
        raise SpecError("one sweep, one model: name presets of the same model")
    points = []
    for preset in chosen:
        names = [name for name in methods or preset.methods("main") if ablation.applies_to(name)]
        if not names:
            raise SpecError(f"ablation {key}: none of the methods has its axes; name others with --methods")
        content = comparison(preset)
        if ablation.select:
            content["training"]["select"] = ablation.select
        point = {
            "task": preset.data.task,
            "metric": preset.data.metric,
            "data": data[preset.data.key].model_dump(mode="json", exclude_none=True, exclude_defaults=True),
            "methods": [ablation.fixed_part(method_content(name, preset)) for name in names],
            "training": content["training"],
            "seeds": content["seeds"],
        }
        points.append(merge_specs(point, {part: given.get(part) for part in ("training", "seeds")}))
    where = "Figure 6" if key == "figure6" else f"Table {key}"
    return {
        "title": f"{where} of arXiv 2606.13767: {ablation.title}",
        "model": given.get("model", {}).get("path", chosen[0].model.hub),
        "data": copy.deepcopy(points[0]["data"]),  # so that a YAML file has no anchors
        **copy.deepcopy(ablation.axes),
        "points": points,
    }
