"""A tiny run done and opened again, as measures get it."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

from test_run import make_spec
from tunewise.measures.finished import FinishedRun
from tunewise.run import run
from tunewise.store.folders import RunStore
from tunewise.store.records import RunRecord
from tunewise.tasks.build import build_task


@functools.cache
def _trained(model: Path, data: Path, method: str) -> tuple[RunRecord, Path]:
    """Once a session."""
    spec, store = make_spec(model, data, method), RunStore(Path(tempfile.mkdtemp(dir=data.parent)))
    record = run(spec, store)
    return record, store.folder(record.id)


def finished(model: Path, data: Path, folder: Path, method: str) -> FinishedRun:
    """A copy in the runs folder `folder`."""
    record, trained = _trained(model, data, method)
    copy = shutil.copytree(trained, folder / record.id)
    return FinishedRun(record, copy, build_task(record.spec), folder / "cache")
