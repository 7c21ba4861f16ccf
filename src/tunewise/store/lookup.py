"""A run by what a person types: its id, the beginning of it, or its folder."""

from __future__ import annotations

import re
from pathlib import Path

from tunewise.errors import SpecError
from tunewise.store.folders import RunStore
from tunewise.text_format import join_names, pluralize


def find_run(text: str, root: Path) -> tuple[RunStore, str]:
    """The store and the id of the run. Raises `SpecError` where no run fits, or more than one."""
    place = Path(text)
    if len(place.parts) > 1 and place.is_dir():
        place = place.resolve()
        root, text = place.parent, place.name
    elif len(place.parts) > 1:
        raise SpecError(f"{text}: there is no such folder; give a run's folder or the beginning of its id")
    if not re.fullmatch(r"[0-9a-f]{1,16}", text):
        raise SpecError(f"{text!r} is no run id (up to 16 of 0-9 and a-f); `tunewise runs ls` lists them")
    store = RunStore(root)
    ids = store.ids()
    matches = [run_id for run_id in ids if run_id.startswith(text)]
    if not matches:
        where = pluralize(len(ids), "run") if root.is_dir() else "there is no such folder"
        raise SpecError(f"no run in {root} begins with {text!r} ({where}); `tunewise runs ls {root}` lists them")
    if len(matches) > 1:
        shown = join_names(matches, 4)
        raise SpecError(f"{len(matches)} runs in {root} begin with {text!r}: {shown}; give more of the id")
    return store, matches[0]
