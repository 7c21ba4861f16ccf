"""A chain and its parent drawn as one family: one colour, the chain solid and the parent dashed (as Figure 4 of arXiv
2606.13767 has them)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from tunewise.catalog import CATALOG, Method
from tunewise.pages.palette import Mark
from tunewise.store.records import RunRecord


@cache
def parents() -> dict[str, str]:
    """Chain -> the method that it is with one link, by the catalog's names."""
    single = {_axes(method): name for name, method in CATALOG.items() if method.chain is None}
    found = {}
    for name, method in CATALOG.items():
        parent = single.get(_axes(replace(method, chain=None)))
        if method.chain is not None and parent is not None:
            found[name] = parent
    return found


def family_marks(records: Sequence[RunRecord], marks: Mapping[str, Mark]) -> dict[str, Mark]:
    """The methods' marks with families in one colour. Methods without a relative in the comparison keep theirs; of two
    parents of one name, the one of the chain's rank is taken."""
    found = dict(marks)
    specs = {record.spec.method.label: record.spec.method for record in records}
    for label, spec in specs.items():
        wanted = parents().get(spec.name)
        kin = [other for other, s in specs.items() if s.name == wanted]
        kin.sort(key=lambda other: specs[other].rank != spec.rank)
        if kin:
            parent = marks[kin[0]]
            found[label] = replace(marks[label], light=parent.light, dark=parent.dark, dash="solid", dash_pattern="")
            found[kin[0]] = replace(parent, dash="dash", dash_pattern="5 3")
    return found


def has_family(records: Sequence[RunRecord]) -> bool:
    """Whether some chain stands beside its parent."""
    names = {record.spec.method.name for record in records}
    return any(parents().get(name) in names for name in names)


def _axes(method: Method) -> Method:
    """What the method does, without what it is called."""
    return replace(method, name="", summary="", source="")
