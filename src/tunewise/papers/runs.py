"""The comparisons in a runs folder that reproduce the paper: `paper.json` in their folder names the preset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tunewise.advise.summary import MethodSummary, summarise
from tunewise.errors import SpecError
from tunewise.models.load import load_config
from tunewise.papers.presets import Preset, Setting, comparison
from tunewise.spec import ModelSpec, StudySpec, parse
from tunewise.store.documents import read_document, write_document
from tunewise.study import evidence

_NOTE = "paper.json"
_SIZES = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


class PaperNote(BaseModel):
    """The preset of a comparison, and its differences from the paper's experiment as sentences."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str
    setting: Setting
    changes: list[str]


@dataclass(frozen=True)
class PaperComparison:
    """A comparison with finished runs: summaries over seeds, in the order of its methods."""

    note: PaperNote
    folder: Path
    summaries: list[MethodSummary]

    @property
    def is_as_printed(self) -> bool:
        """Whether model, data, settings and seeds are the paper's."""
        return not self.note.changes


def write_note(folder: Path, note: PaperNote) -> None:
    """Writes the note into a comparison's folder."""
    write_document(folder / _NOTE, note)


def read_comparisons(root: Path) -> list[PaperComparison]:
    """The paper's comparisons in a runs folder that have a finished run; the latest first.

    Raises `SpecError` where there is none, `StoreError` where a file is damaged.
    """
    folders = [folder for folder in evidence.comparisons(root) if (folder / _NOTE).is_file()]
    comparisons = []
    for folder in folders:
        note = read_document(folder / _NOTE, PaperNote, "run `tunewise paper run` again")
        read = evidence.read(folder)
        if any(record.status == "done" for record in read.records):
            summaries = summarise(read.records, read.costs, read.spec.reference)
            comparisons.append(PaperComparison(note, folder, summaries))
    if not comparisons:
        missing = "finished run of the paper's presets" if folders else "comparison of `tunewise paper run`"
        raise SpecError(f"{root} has no {missing}; begin with: tunewise paper run vit-tiny/cifar10 --out {root}")
    return comparisons


def changes(preset: Preset, setting: Setting, spec: StudySpec, notes: Sequence[str] = ()) -> list[str]:
    """Differences of a planned comparison from the paper's experiment, as sentences."""
    paper = parse(StudySpec, {**comparison(preset, setting), "data": "as published"})
    differences = []
    if not _has_sizes_of(spec.model, preset):
        differences.append(f"another model than {preset.model.printed}: {spec.model.path}")
    for part in ("train", "validation", "test"):
        size = getattr(spec.data, f"{part}_size")
        if size is not None:
            differences.append(f"only {size:,} {part} examples")
    differences += [note for note in notes if "not the paper's" in note]
    for key in type(spec.training).model_fields:
        ours, theirs = getattr(spec.training, key), getattr(paper.training, key)
        if ours != theirs and key != "save_every" and (key != "max_length" or preset.data.has_texts):
            differences.append(f"{key} {ours} instead of {theirs}")
    if list(spec.seeds) != list(paper.seeds):
        differences.append(f"seeds {', '.join(map(str, spec.seeds))} instead of {', '.join(map(str, paper.seeds))}")
    if spec.data.image_size is not None and spec.data.image_size != preset.settings.size:
        differences.append(f"images of {spec.data.image_size} pixels instead of {preset.settings.size}")
    by_name = {method.name: method for method in paper.methods}
    differences += [f"other settings of {m.label}" for m in spec.methods if m != by_name.get(m.name, m)]
    return differences


def _has_sizes_of(model: ModelSpec, preset: Preset) -> bool:
    """Whether a model has the sizes of the paper's; weights are not compared."""
    ours, theirs = load_config(model), load_config(ModelSpec(path=str(preset.model.config)))
    return all(getattr(ours, key, None) == getattr(theirs, key, None) for key in _SIZES)
