"""From the short forms that people write to the full content of a study: names, axes, further points."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from tunewise.catalog import get_method
from tunewise.errors import SpecError
from tunewise.spec.parts import DataSpec, Frozen, MethodSpec, ModelSpec, TrainingSpec
from tunewise.spec.reading import Content, merge_specs, parse

PARTS: dict[str, type[Frozen]] = {"model": ModelSpec, "data": DataSpec, "training": TrainingSpec}
METHOD_KEYS = ("rank", "alpha", "targets", "links", "restart_every", "learning_rate", "layers", "lora_a_init")
"""Keys beside `methods` that hold for all rows; a list makes a row of each value, but for layers."""
_CHAIN = ("links", "restart_every")
_HALF_POWER = re.compile(r"1e([-+]?\d+\.\d+)")
_IN_RANKS = re.compile(r"(?P<times>\d+(?:\.\d+)?)?\s*\*?\s*r\s*(?:/\s*(?P<over>\d+(?:\.\d+)?))?")
_TITLES = {
    "rank": "r",
    "alpha": "alpha",
    "targets": "on",
    "layers": "blocks",
    "links": "links",
    "restart_every": "restarts every",
    "learning_rate": "lr",
}


def expand_study(content: Content) -> Content:
    """Full content of a study: one mapping a part, further ones under `grid`, method rows, complete points."""
    full = {key: value for key, value in content.items() if value is not None}
    if points := full.pop("points", None):
        full["points"] = [_complete_point(full, point, place) for place, point in enumerate(points)]
    for part in PARTS:
        if part in full:
            values = _expand_part(full[part], part)
            full[part] = values[0]
            if len(values) > 1:
                full["grid"] = {**full.get("grid", {}), part: values}
    shared = {key: full.pop(key) for key in METHOD_KEYS if key in full}
    if all(shared.get(key) for key in _CHAIN):
        raise SpecError("links and restart_every both say when a chain restarts; give one of them")
    full["methods"] = expand_methods(full.get("methods", []), shared)
    rows = [get_method(method.name) for method in full["methods"]]
    if rows and all(row.refuses_rank for row in rows):
        rows[0].resolve_rank(shared.get("rank"))
    return full


def expand_methods(rows: object, shared: Mapping[str, object]) -> list[MethodSpec]:
    """Method rows, one for each value of their axes; a row's own values win over the shared ones."""
    if isinstance(rows, str):
        rows = [name.strip() for name in rows.split(",") if name.strip()]
    methods: list[MethodSpec] = []
    for row in rows if isinstance(rows, list) else [rows]:
        unique: dict[str, MethodSpec] = {}
        for values in _row_values(row, shared):
            method = parse(MethodSpec, values, source=f"method {values['name']}")
            unique.setdefault(f"{method.content()} {method.learning_rate}", method)
        methods += unique.values()
    return _with_titles(methods)


def resolve_alpha(alpha: float | str, rank: int) -> float:
    """The number that is meant by 16, 'r', 'r/4' or '2r'. Raises `SpecError` for what is none of these."""
    try:
        return float(alpha)
    except ValueError:
        match = _IN_RANKS.fullmatch(str(alpha).strip())
    if match is None or not float(match["over"] or 1):
        raise SpecError(f"alpha {alpha!r}: give a number, or one in ranks: r/4, r, 2r")
    return float(match["times"] or 1) * rank / float(match["over"] or 1)


def _complete_point(base: Mapping[str, object], point: object, place: int) -> object:
    """A point with what it does not say taken from the study."""
    if not isinstance(point, Mapping):
        return point
    if point.get("points"):
        raise SpecError(f"points.{place}: points can't hold points; list them one after another")
    keys = ("task", "metric", "evaluation", "seeds", "methods", *PARTS, *METHOD_KEYS, "grid")
    inherited = {key: base[key] for key in keys if key in base}
    if any(key in point for key in _CHAIN):
        inherited = {key: value for key, value in inherited.items() if key not in _CHAIN}
    point = dict(point)
    for part in PARTS:
        own, common = point.get(part), inherited.get(part)
        if isinstance(own, Mapping) and "path" not in own and common is not None:
            listed = common if isinstance(common, list) else [common]
            point[part] = [merge_specs(_mapping(one), dict(own)) for one in listed]
    full = {**inherited, **point}
    if not full.get("methods"):
        raise SpecError(f"points.{place}: no method; name it there, or give methods: for all")
    return full


def _expand_part(values: object, part: str) -> list[object]:
    if values == []:
        raise SpecError(f"{part}: an empty list; give one or more")
    listed = values if isinstance(values, list) else [values]
    return [_read_rate(each) for one in listed for each in _spread(_mapping(one), part, PARTS[part])]


def _mapping(value: object) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _row_values(row: object, shared: Mapping[str, object]) -> Iterator[Content]:
    """All mappings that a row stands for."""
    if isinstance(row, BaseModel):
        row = row.model_dump(exclude_unset=True)
    row = {"name": row} if isinstance(row, str) else row
    if not isinstance(row, Mapping) or not row.get("name"):
        raise SpecError(f"methods: {row} names no method; write {{name: lora, rank: 8}}")
    method = get_method(str(row["name"]))
    for own in _spread({key: value for key, value in row.items() if value is not None}, "methods", MethodSpec):
        axes = {key: value for key, value in shared.items() if key not in own}
        if method.chain is None or any(key in own for key in _CHAIN):
            axes = {key: value for key, value in axes.items() if key not in _CHAIN}
        if method.where != "random":
            axes.pop("lora_a_init", None)
        if method.refuses_rank:
            axes.pop("rank", None)
        listed = [
            [(key, value) for value in (values if isinstance(values, list) and key != "layers" else [values])]
            for key, values in axes.items()
        ]
        for pairs in itertools.product(*listed):
            values = _read_rate({**dict(pairs), **own})
            if values.get("alpha") is not None:
                values["alpha"] = resolve_alpha(
                    values["alpha"], values.get("rank", MethodSpec.model_fields["rank"].default)
                )
            yield values


def _spread(mapping: object, where: str, kind: type[Frozen]) -> list[Any]:
    """A mapping with lists in it as one mapping a combination; a list under a key that takes lists is one value."""
    if not isinstance(mapping, Mapping):
        return [mapping]
    axes = []
    for key, values in mapping.items():
        is_axis = isinstance(values, list) and key in kind.model_fields and not _takes_lists(kind, key)
        if is_axis and not values:
            raise SpecError(f"{where}.{key}: an empty list; give its values, or leave the key out")
        axes.append([(key, value) for value in (values if is_axis else [values])])
    return [dict(pairs) for pairs in itertools.product(*axes)]


def _takes_lists(kind: type[Frozen], key: str) -> bool:
    return "list[" in str(kind.model_fields[key].annotation)


def _read_rate(mapping: Any) -> Any:
    """Half powers of ten as papers print them: '1e-4.5'."""
    rate = mapping.get("learning_rate") if isinstance(mapping, Mapping) else None
    match = _HALF_POWER.fullmatch(rate.strip().lower()) if isinstance(rate, str) else None
    return {**mapping, "learning_rate": 10.0 ** float(match[1])} if match else mapping


def _with_titles(methods: Sequence[MethodSpec]) -> list[MethodSpec]:
    """Rows of one name get a title that says in what they differ: 'lora r=4', 'lora r=16'."""
    titled = []
    for method in methods:
        same_name = [other for other in methods if other.name == method.name]
        differing = [key for key in _TITLES if len({str(getattr(other, key)) for other in same_name}) > 1]
        if len(same_name) > 1 and differing and not method.title:
            values = {key: getattr(method, key) for key in differing if key in method.model_fields_set}
            parts = [f"{_TITLES[key]}={_short(value)}" for key, value in values.items() if value is not None]
            method = method.model_copy(update={"title": " ".join([method.name, *parts])})
        titled.append(method)
    return titled


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
