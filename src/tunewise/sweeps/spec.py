"""What a sweep asks for: a comparison's keys, any of them a list. Plain data, checked before torch is imported.

    model: roberta-base
    data: {path: mrpc.csv, train_size: [200, 1000]}
    methods: [lora, c3la]
    rank: [4, 8, 16]
    alpha: [r/2, r, 2r]
    learning_rate: [1e-5, 1e-4.5, 1e-4]
    seeds: 3
    training: {epochs: 20, batch_size: 32}
    points:
      - {methods: fft, learning_rate: 1e-5}

Every list is an axis, and the runs are the product of all axes. A key that means nothing to a method (`links` to one
without a chain, `rank` to full fine-tuning) is left out for it, and what comes to the same run is run once. Each of
the `points` is a product of its own: what it does not say is taken from above. Without `methods` at the top there are
the points alone.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

from pydantic import Field, field_validator, model_validator

from tunewise.catalog import get_method
from tunewise.errors import SpecError
from tunewise.spec import DataSpec, Frozen, MethodSpec, ModelSpec, RunSpec, TrainingSpec, merged, parse

_HALF_POWER = re.compile(r"1e([-+]?\d+\.\d+)")
_IN_RANKS = re.compile(r"(?P<times>\d+(?:\.\d+)?)?\s*\*?\s*r\s*(?:/\s*(?P<over>\d+(?:\.\d+)?))?")


def _takes_lists(kind: type[Frozen]) -> frozenset[str]:
    return frozenset(name for name, field in kind.model_fields.items() if "list[" in str(field.annotation))


_LISTS = {
    "model": _takes_lists(ModelSpec),
    "data": _takes_lists(DataSpec),
    "training": _takes_lists(TrainingSpec),
    "methods": _takes_lists(MethodSpec),
}
"""Keys whose value is a list itself, and so no axis."""


class SweepSpec(Frozen):
    """Axes. A single value may stand for a list of one; an empty list leaves the key to its default."""

    title: str = "Sweep"
    task: str | None = Field(None, description="known from the data's form unless given")
    metric: str | None = Field(None, description="the main metric; the task's own unless given")
    model: list[ModelSpec] = Field(min_length=1)
    data: list[DataSpec] = Field(min_length=1, description="any of its keys may be a list")
    methods: list[str | dict[str, Any]] = Field([], description="names, or mappings of a method's own keys, which win")
    rank: list[int] = Field([])
    alpha: list[float | str] = Field([], description="numbers, or in ranks: 'r/4', 'r', '2r'")
    targets: list[str | list[str]] = Field([], description="'qv', 'all-linear', 'query,value', or lists of names")
    links: list[int] = Field([], description="of methods with a chain")
    restart_every: list[int] = Field([], description="epochs that a link lasts, instead of links")
    learning_rate: list[float] = Field([], description="numbers, or half powers of ten as they are printed: 1e-4.5")
    seeds: list[int] = Field([0], min_length=1, description="a list, or how many: 3 are 0, 1, 2")
    training: list[TrainingSpec] = Field([TrainingSpec()], min_length=1, description="any of its keys may be a list")
    points: list[dict[str, Any]] = Field([], description="further products; what one does not say is taken from above")

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        content = {key: value for key, value in content.items() if value is not None}
        for key in ("model", "data", "training"):
            if content.get(key) == []:
                raise SpecError(f"{key}: an empty list; give one or more")
        for key in ("model", "data"):
            if key in content:
                listed = content[key] if isinstance(content[key], list) else [content[key]]
                content[key] = [
                    each for one in listed for each in _spread({"path": one} if isinstance(one, str) else one, key)
                ]
        if "training" in content:
            listed = content["training"] if isinstance(content["training"], list) else [content["training"]]
            content["training"] = [_readable_rate(each) for one in listed for each in _spread(one, "training")]
        if isinstance(content.get("methods"), str):
            content["methods"] = [name.strip() for name in content["methods"].split(",") if name.strip()]
        if "seeds" in content:
            content["seeds"] = _seeds(content["seeds"])
        for key in ("methods", "rank", "alpha", "targets", "links", "restart_every", "learning_rate"):
            if key in content and not isinstance(content[key], list):
                content[key] = [content[key]]
        if isinstance(content.get("methods"), list):
            content["methods"] = [each for row in content["methods"] for each in _spread(row, "methods")]
            content["methods"] = [_readable_rate(row) for row in content["methods"]]
        return content

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _half_powers(cls, rates: Any) -> Any:
        return [_rate(rate) for rate in rates] if isinstance(rates, list) else rates

    @field_validator("alpha")
    @classmethod
    def _readable(cls, alphas: list[float | str]) -> list[float | str]:
        for alpha in alphas:
            alpha_of(alpha, 1)
        return alphas

    @model_validator(mode="after")
    def _checked(self) -> SweepSpec:
        """Whether every run can be made of it: names, values below their least, two keys that exclude each other."""
        if not self.methods and not self.points:
            raise SpecError("no methods: give methods: [lora, cla], or points: that name one each")
        if self.links and self.restart_every:
            raise SpecError("links and restart_every both say when a chain restarts; give one of them")
        for place, point in enumerate(self.points):
            self._products_of(point, place)
        for _ in self._method_specs():
            pass
        return self

    def runs(self) -> list[RunSpec]:
        """All runs, each once (by content hash). Runs on the same model and data follow each other, seed by seed, so
        that a sweep cut short has every setting at the first seeds."""
        parts = [self, *(self._products_of(point, place) for place, point in enumerate(self.points))]
        found = {run.id: run for part in parts for run in part._product()}
        groups: dict[str, list[RunSpec]] = {}
        for run in found.values():
            key = f"{run.model.model_dump_json()} {run.data.model_dump_json()} {run.training.max_length}"
            groups.setdefault(key, []).append(run)
        return [run for group in groups.values() for run in sorted(group, key=lambda run: run.seed)]

    def _products_of(self, point: dict[str, Any], place: int) -> SweepSpec:
        where = f"points.{place}"
        if "points" in point:
            raise SpecError(f"{where}: points can't hold points; list them one after another")
        base = self.model_dump(mode="json", exclude={"points"})
        if any(key in point for key in ("links", "restart_every")):  # the one that it says takes the other's place
            base.update(links=[], restart_every=[])
        for key in ("model", "data", "training"):
            said = point.get(key)
            if isinstance(said, dict) and "path" not in said:
                point = {**point, key: [merged(one, said) for one in base[key]]}
        made = parse(SweepSpec, {**base, **point}, source=where)
        if not made.methods:
            raise SpecError(f"{where}: no method; name it there, or give methods: for all")
        return made

    def _product(self) -> Iterator[RunSpec]:
        for model, data, training, seed, method in itertools.product(
            self.model, self.data, self.training, self.seeds, list(self._method_specs())
        ):
            yield RunSpec(
                task=self.task or "text",
                model=model,
                data=data,
                method=method,
                training=training,
                seed=seed,
                metric=self.metric,
            )

    def _method_specs(self) -> Iterator[MethodSpec]:
        """Every method with every value of its axes; a mapping's own values stand above the axes."""
        axes = ("rank", "alpha", "targets", "links", "restart_every", "learning_rate")
        seen = set()
        for row in self.methods:
            own = {"name": row} if isinstance(row, str) else row
            if "name" not in own:
                raise SpecError(f"methods: {own} names no method; write {{name: lora, rank: 8}}")
            chained = get_method(str(own.get("name", ""))).chain is not None
            wanted = [key for key in axes if key not in own and (chained or key not in ("links", "restart_every"))]
            if own.get("links") or own.get("restart_every"):
                wanted = [key for key in wanted if key not in ("links", "restart_every")]
            for values in itertools.product(*(getattr(self, key) or [None] for key in wanted)):
                said = {**dict(zip(wanted, values, strict=True)), **own}
                said = {key: value for key, value in said.items() if value is not None}
                if "alpha" in said:
                    said["alpha"] = alpha_of(said["alpha"], said.get("rank", MethodSpec.model_fields["rank"].default))
                if isinstance(said.get("targets"), str) and "," in said["targets"]:
                    said["targets"] = [name.strip() for name in said["targets"].split(",")]
                method = parse(MethodSpec, said, source=f"method {own['name']}")
                key = method.model_dump_json()
                if key not in seen:
                    seen.add(key)
                    yield method


def alpha_of(alpha: float | str, rank: int) -> float:
    """The number that is meant by 16, 'r', 'r/4' or '2r'. Raises `SpecError` for what is none of these."""
    try:
        return float(alpha)
    except ValueError:
        found = _IN_RANKS.fullmatch(str(alpha).strip())
    if found is None or not float(found["over"] or 1):
        raise SpecError(f"alpha {alpha!r}: give a number, or one in ranks: r/4, r, 2r")
    return float(found["times"] or 1) * rank / float(found["over"] or 1)


def _rate(rate: Any) -> Any:
    found = _HALF_POWER.fullmatch(rate.strip().lower()) if isinstance(rate, str) else None
    return 10.0 ** float(found[1]) if found else rate


def _readable_rate(mapping: Any) -> Any:
    if not isinstance(mapping, dict) or "learning_rate" not in mapping:
        return mapping
    return {**mapping, "learning_rate": _rate(mapping["learning_rate"])}


def _seeds(said: Any) -> list[int]:
    """A list of seeds, or as many from 0 as are asked for."""
    found = list(range(said)) if _is_whole(said) else said
    if isinstance(found, list) and found and all(_is_whole(seed) and seed >= 0 for seed in found):
        if len(set(found)) < len(found):
            raise SpecError(f"seeds {found} hold one twice; each run must be its own")
        return found
    raise SpecError(f"seeds: {said}: give how many (1 or more; 3 are the seeds 0, 1, 2), or a list: [0, 1, 2]")


def _is_whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def _spread(mapping: Any, part: str) -> list[Any]:
    """A mapping with lists in it as one mapping for each combination of their values; a list under a key that takes
    lists is one value."""
    if not isinstance(mapping, dict):
        return [mapping]
    axes = []
    for key, values in mapping.items():
        if values == [] and key not in _LISTS[part]:
            raise SpecError(f"{part}.{key}: an empty list; give its values, or leave the key out")
        axes.append(
            [(key, value) for value in (values if isinstance(values, list) and key not in _LISTS[part] else [values])]
        )
    return [dict(pairs) for pairs in itertools.product(*axes)]
