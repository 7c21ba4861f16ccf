"""The files in a comparison's folder: written when it starts, read again by `report`, `recommend` and `aa`.

runs/compare-<id>/compare.json   the specification that was run, rates and digests filled in
runs/compare-<id>/about.json     its title
runs/compare-<id>/tuning.json    the learning-rate search, where there was one
runs/compare-<id>/costs.json     the cost probe, where it was made
runs/compare-<id>/report.html
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel

from tunewise.advise.items import ItemScores, Predictions
from tunewise.advise.summary import MethodSummary, add_item_comparisons, summarise
from tunewise.errors import SpecError, StoreError, suggest_nearest
from tunewise.spec import StudySpec
from tunewise.store.answers import Answer, read_answers
from tunewise.store.documents import read_document, write_document
from tunewise.store.files import write_atomically
from tunewise.store.folders import RunStore
from tunewise.store.names import ANSWERS, RECORD
from tunewise.store.records import CostReport, RunRecord, TuningReport

if TYPE_CHECKING:
    from tunewise.measures.collect import Collected

DEFAULT_TITLE = "Which fine-tuning method?"
_PREFIX = "compare-"
_SPEC = "compare.json"

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Evidence:
    """A comparison's runs and results. `records` has every run of the spec, in its order; one that has not come to its
    end has the status "running"."""

    spec: StudySpec
    folder: Path
    records: list[RunRecord]
    title: str = DEFAULT_TITLE
    costs: CostReport | None = None
    tuning: TuningReport | None = None
    measured: Collected = field(default_factory=dict)

    @property
    def store(self) -> RunStore:
        return RunStore(self.folder.parent)

    def adapter_of(self, label: str | None) -> tuple[Path, int] | None:
        """The adapter of a method's first finished run, and the run's seed; None without one."""
        done = [run for run in self.records if run.spec.method.label == label and run.status == "done"]
        return (self.store.folder(done[0].id) / "adapter", done[0].spec.seed) if done else None

    def summarise(self, metric: str | None = None) -> list[MethodSummary]:
        """The methods over their seeds, by a test metric (the main one unless given), and over the test items."""
        summaries = summarise(self.records, self.costs, self.spec.reference, metric, self.tuning)
        scores = item_scores(self.records, self.read_answers(), summaries[0].metric)
        return add_item_comparisons(summaries, read_predictions(self), scores)

    def read_answers(self) -> dict[str, list[Answer]]:
        """The generated answers of the finished runs, by id; of runs that generate."""
        done = [record.id for record in self.records if record.status == "done"]
        answers = {run_id: read_answers(self.store.folder(run_id) / ANSWERS) for run_id in done}
        return {run_id: found for run_id, found in answers.items() if found}

    @property
    def unfinished(self) -> int:
        """Runs that have not come to their end."""
        return sum(record.status == "running" for record in self.records)


def begin(spec: StudySpec, store: RunStore, title: str, tuning: TuningReport | None) -> Path:
    """Make a comparison's folder, before its first run, so that an unfinished one can be looked at too."""
    folder = store.root / f"{_PREFIX}{spec.id}"
    write_atomically(folder / _SPEC, spec.model_dump_json(indent=1) + "\n")
    write_atomically(folder / "about.json", json.dumps({"title": title}, indent=1) + "\n")
    if tuning is not None:
        write_document(folder / "tuning.json", tuning)
    return folder


def keep_costs(folder: Path, costs: CostReport) -> None:
    """Put the cost probe's result beside the comparison that it belongs to."""
    write_document(folder / "costs.json", costs)


def comparisons(root: Path) -> list[Path]:
    """Folders of the comparisons in a runs folder, the latest first."""
    folders = [file.parent for file in root.glob(f"{_PREFIX}*/{_SPEC}")]
    return sorted(folders, key=lambda folder: ((folder / _SPEC).stat().st_mtime, folder.name), reverse=True)


def locate(path: Path) -> tuple[Path, list[Path]]:
    """The comparison folder that is meant by `path`: it itself, or the latest one in a runs folder; and the others in
    that case. Raises `SpecError` where there is none."""
    if (path / _SPEC).is_file():
        return path, []
    if not path.is_dir():
        names = [folder.name for folder in comparisons(path.parent)]
        hint = suggest_nearest(path.name, names) if names else "; give the folder of `tunewise compare --out`"
        raise SpecError(f"{path} is no folder{hint}")
    folders = comparisons(path)
    if not folders:
        raise SpecError(f"{path} holds no comparison; {_how_to_compare(path)}")
    return folders[0], folders[1:]


def _how_to_compare(path: Path) -> str:
    root = path.parent if (path / RECORD).is_file() else path
    if folders := comparisons(root):
        return f"give the runs folder {root}, or {folders[0]} in it"
    if not RunStore(root).ids():
        return "give a runs folder, or a compare-... folder in one"
    return f"`tunewise compare --out {root}` with the same settings compares the finished runs there"


def read(folder: Path, *, measures: bool = False) -> Evidence:
    """A comparison as it stands on disk. `measures` reads their results, too (imports torch).

    Raises `StoreError` where a file can't be read, or where not one run has a record.
    """
    spec = _read(folder / _SPEC, StudySpec)
    if spec is None:
        raise StoreError(f"{folder} holds no {_SPEC}; give the folder of a comparison")
    store = RunStore(folder.parent)
    runs = [(run, store.record(run.id)) for run in spec.runs()]
    sample = next((record for _, record in runs if record is not None), None)
    if sample is None:
        raise StoreError(f"{folder} has no finished run yet; wait for `tunewise compare`, or start it again")
    unfinished = sample.model_copy(
        update={
            "status": "running",
            "results": None,
            "check": None,
            "model": None,
            "files": {},
            "seconds": 0.0,
            "error": "not finished; the same command goes on",
        }
    )
    # A run that another comparison made is called here what this comparison calls it.
    records = [(record or unfinished).model_copy(update={"spec": run, "id": run.id}) for run, record in runs]
    results: Collected = {}
    if measures:
        from tunewise.measures.collect import read_measures

        results = read_measures(spec.measures, records, store, spec.measure_settings)
    costs, tuning = _read(folder / "costs.json", CostReport), _read(folder / "tuning.json", TuningReport)
    return Evidence(spec, folder, records, _title(folder), costs, tuning, results)


def read_predictions(evidence: Evidence) -> dict[str, dict[int, Predictions]]:
    """Predictions of the finished runs on the test items, by label and seed; of runs that choose among classes."""
    predictions: dict[str, dict[int, Predictions]] = {}
    for record in evidence.records:
        if record.status != "done" or record.results is None or record.results.confusion is None:
            continue
        read = _read_predictions(evidence.store.folder(record.id) / "predictions.npz")
        labels = record.data.labels if record.data else []
        if read is not None and len(labels) == 2 and record.spec.data.positive == labels[0]:
            read = Predictions(1 - read.predicted, 1 - read.labels)  # F1 over items is that of the second class
        if read is not None:
            predictions.setdefault(record.spec.method.label, {})[record.spec.seed] = read
    return predictions


def item_scores(
    records: Sequence[RunRecord], answers: Mapping[str, Sequence[Answer]], metric: str
) -> dict[str, dict[int, ItemScores]]:
    """What runs scored on each test item, by label and seed, from their generated answers."""
    import numpy as np

    scores: dict[str, dict[int, ItemScores]] = {}
    for record in records:
        scored = [answer for answer in answers.get(record.id, ()) if metric in answer.scores]
        if scored:
            by_item = np.array([answer.scores[metric] for answer in scored])
            items = [f"{answer.prompt}\0{answer.reference}" for answer in scored]
            scores.setdefault(record.spec.method.label, {})[record.spec.seed] = ItemScores(by_item, items)
    return scores


def _read_predictions(file: Path) -> Predictions | None:
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as arrays:
            logits, labels = arrays["logits"], arrays["labels"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(f"{file} can't be read ({error}); remove that folder to run it again") from None
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.dtype.kind not in "iu":
        return None
    return Predictions(logits.argmax(axis=1), labels)


def _title(folder: Path) -> str:
    try:
        return str(json.loads((folder / "about.json").read_text(encoding="utf-8"))["title"])
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_TITLE


def _read(file: Path, kind: type[_Model]) -> _Model | None:
    try:
        return read_document(file, kind, "run `tunewise compare` again")
    except FileNotFoundError:
        return None
