"""Which comparisons in a runs folder are of the paper: `paper.json` in one's folder says what it was run as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tunewise import evidence
from tunewise.advise.summary import MethodSummary, summarise
from tunewise.errors import SpecError
from tunewise.models.load import load_config
from tunewise.papers.presets import Pair, Setting, comparison, get_pair
from tunewise.spec import ModelSpec, StudySpec, parse
from tunewise.store.documents import read_document, write_document

_NOTE = "paper.json"
_SIZES = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


class PaperRun(BaseModel):
    """What a comparison was run as, and in what it departs from the paper: sentences, none for the whole thing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pair: str
    setting: Setting
    changes: list[str]


@dataclass(frozen=True)
class Ran:
    """One comparison of the paper with what its runs say: summaries over seeds, in the order of its methods."""

    known: PaperRun
    folder: Path
    summaries: list[MethodSummary]

    @property
    def pair(self) -> Pair:
        return get_pair(self.known.pair)

    @property
    def whole(self) -> bool:
        """Whether it is what the paper ran: its model, all of its data, its settings and seeds."""
        return not self.known.changes


def keep_note(folder: Path, note: PaperRun) -> None:
    """Put it into a comparison's folder."""
    write_document(folder / _NOTE, note)


def found(root: Path) -> list[Ran]:
    """The paper's comparisons in a runs folder that have a finished run; the latest first.

    Raises `SpecError` where there is none, `StoreError` where a file is damaged.
    """
    notes = [folder for folder in evidence.comparisons(root) if (folder / _NOTE).is_file()]
    ran = []
    for folder in notes:
        note = read_document(folder / _NOTE, PaperRun, "run `tunewise paper run` again")
        records = evidence.read(folder)
        if any(record.status == "done" for record in records.records):
            reference = records.spec.reference
            ran.append(Ran(note, folder, summarise(records.records, records.costs, reference)))
    if not ran:
        why = "no comparison that `tunewise paper run` made" if not notes else "no finished run of the paper's presets"
        raise SpecError(f"{root} holds {why}; begin with: tunewise paper run vit-tiny/cifar10 --out {root}")
    return ran


def changes(pair: Pair, setting: Setting, spec: StudySpec, notes: Sequence[str] = ()) -> list[str]:
    """In what a planned comparison departs from the paper's own, in sentences."""
    wanted = parse(StudySpec, {**comparison(pair, setting), "data": "as published"})
    departures = []
    if not _is_architecture(spec.model, pair):
        departures.append(f"another model than {pair.model.printed}: {spec.model.path}")
    for part in ("train", "validation", "test"):
        size = getattr(spec.data, f"{part}_size")
        if size is not None:
            departures.append(f"{size:,} {part} examples alone")
    departures += [note for note in notes if "not the paper's" in note]
    for key in type(spec.training).model_fields:
        mine, theirs = getattr(spec.training, key), getattr(wanted.training, key)
        if mine != theirs and key != "save_every" and (key != "max_length" or pair.data.of_texts):
            departures.append(f"{key} {mine} instead of {theirs}")
    if list(spec.seeds) != list(wanted.seeds):
        departures.append(f"seeds {', '.join(map(str, spec.seeds))} instead of {', '.join(map(str, wanted.seeds))}")
    if spec.data.image_size is not None and spec.data.image_size != pair.settings.size:
        departures.append(f"images of {spec.data.image_size} pixels instead of {pair.settings.size}")
    theirs_by_name = {method.name: method for method in wanted.methods}
    for method in spec.methods:
        if method.name in theirs_by_name and method != theirs_by_name[method.name]:
            departures.append(f"other settings of {method.label}")
    return departures


def _is_architecture(model: ModelSpec, pair: Pair) -> bool:
    """Whether a model has the sizes of the paper's; its weights are not looked at."""
    mine, theirs = load_config(model), load_config(ModelSpec(path=str(pair.model.config)))
    return all(getattr(mine, key, None) == getattr(theirs, key, None) for key in _SIZES)
