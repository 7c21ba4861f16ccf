"""A run by what a person types: its id, the beginning of it, or its folder."""

from __future__ import annotations

import re
from pathlib import Path

from tunewise.errors import SpecError, StoreError
from tunewise.store.folders import RunStore
from tunewise.store.records import RunRecord
from tunewise.text_format import pluralize


def find_run(text: str, root: Path) -> tuple[RunStore, str]:
    """The store and the id that are meant. Raises `SpecError` where none begins like this, or more than one."""
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
    found = [run_id for run_id in ids if run_id.startswith(text)]
    if not found:
        where = pluralize(len(ids), "run") if root.is_dir() else "there is no such folder"
        raise SpecError(f"no run in {root} begins with {text!r} ({where}); `tunewise runs ls {root}` lists them")
    if len(found) > 1:
        shown = ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")
        raise SpecError(f"{len(found)} runs in {root} begin with {text!r}: {shown}; give more of the id")
    return store, found[0]


def record_of(store: RunStore, run_id: str) -> RunRecord:
    """Its record. Raises `StoreError` where it has none, or one that can't be read."""
    record = store.record(run_id)
    if record is None:
        state = "is being run" if store.is_locked(run_id) else "did not come to its end"
        raise StoreError(f"run {run_id} {state}, so there is no record yet; the command that began it goes on with it")
    return record
