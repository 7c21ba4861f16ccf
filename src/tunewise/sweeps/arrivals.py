"""The driver's side of a home: runs that are there come into the runs folder, whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tunewise.store.folders import RunStore
from tunewise.store.leases import LeaseHeld
from tunewise.store.records import RunRecord
from tunewise.store.verification import faults_of_run
from tunewise.sweeps.home import Copy, Damaged, Home


def bring(home: Home, run: str, store: RunStore) -> RunRecord | None:
    """The run's folder as it is at home, in place of what is here, and its record; None where no copy has a record.

    It appears at once, by a rename, after the checksums of every file and the store's own verification found nothing
    wrong; a damaged copy is dropped, for the next best one. The caller has the run's lease. Raises `Damaged` where
    there were copies with a record and none is whole, `StoreError` where the home can't be read now.
    """
    wrong, tried = "", set[str]()
    # Listed anew each time: a better copy may take the place of one that is being read.
    while copies := [one for one in home.copies(run) if one.status is not None and one.name not in tried]:
        tried.add(copies[0].name)
        with tempfile.TemporaryDirectory(prefix=f".{run}.", dir=store.root, ignore_cleanup_errors=True) as scratch:
            place = RunStore(scratch)
            try:
                record = _fetched(home, copies[0], place)
            except Damaged as error:
                wrong = str(error)
                home.drop(copies[0])  # or every node would take the run for done
                continue
            _swap(place.folder(run), store.folder(run), Path(scratch))
            return record
    if wrong:
        raise Damaged(wrong)
    return None


def pick_up(home: Home, runs: Iterable[str], store: RunStore) -> list[str]:
    """Bring those of these runs that came to their end and are at home only; the ids of those that arrived. One that
    another process has is left to it."""
    arrived = []
    there = home.runs()
    for run in runs:
        if run not in there or not any(copy.ended for copy in home.copies(run)):
            continue
        try:
            with store.lease(run):
                if store.finished(run) is None:
                    bring(home, run, store)
        except (LeaseHeld, Damaged):
            continue
        if store.finished(run) is not None:
            arrived.append(run)
    return arrived


def _fetched(home: Home, copy: Copy, place: RunStore) -> RunRecord:
    home.fetch(copy, place.folder(copy.run))
    faults = faults_of_run(place, copy.run)
    if faults:
        raise Damaged(f"{home.url}/{copy.run}: {faults[0]}")
    record = place.record(copy.run)
    if record is None or record.status != copy.status:
        raise Damaged(f"{home.url}/{copy.run}: the record of copy {copy.name} is not the one that was sent")
    return record


def _swap(new: Path, old: Path, scratch: Path) -> None:
    """Put a folder in another's place. Killed in between, the run is absent here and still at home."""
    if old.exists():
        os.replace(old, scratch / "before")
    os.replace(new, old)
