"""Inspect an adapter of any origin, or the difference of two models: spectra and intruder dimensions of every layer.

adapter -> its base model -> dW of each layer -> spectra, intruders -> (scaled intruders)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from tunewise.cache import cache_folder
from tunewise.errors import MeasureError, SpecError, StoreError
from tunewise.measures._linalg.base_spectra import FOLDER, BaseSpectra
from tunewise.measures.base import Values
from tunewise.measures.finished import Check, no_check
from tunewise.measures.intruders.compute import THRESHOLD, TOP_K, IntruderSettings, IntrudersResult, intruders_of
from tunewise.measures.intruders.scaled import ScaledIntruders, scaling_curve
from tunewise.measures.spectrum.compute import SpectrumResult, spectra_of
from tunewise.measures.updates.folder import adapter_folder, module_names, updates_between, updates_of
from tunewise.measures.updates.layer import Updates
from tunewise.measures.updates.refusal import refusal
from tunewise.measures.updates.retrained import Retrained, retrained_by
from tunewise.methods.files import CHANGED, CONFIG, SIDECAR, read_attachment
from tunewise.methods.loading import load
from tunewise.methods.tied import untie_adapted
from tunewise.models.bare import base_of_adapter, load_bare
from tunewise.models.load import model_digest
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, StudySpec
from tunewise.store.folders import RECORD, RunStore
from tunewise.store.records import RunRecord, Scores
from tunewise.tasks.build import build_task
from tunewise.tasks.contract import Task
from tunewise.training.evaluation import evaluate

OnPhase = Callable[[str], None]
THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 21))


class Inspection(Values):
    """Spectra and intruders of an adapter; layers are in the model's order."""

    of: str
    """The adapter, the run or the second model, in words."""
    base: str
    family: str
    """The method: 'cla', 'lora', 'dora', 'fft', 'full model', ..."""
    spectrum: SpectrumResult
    intruders: IntrudersResult
    scaled_intruders: list[ScaledIntruders]
    scaled_on: str
    """The data behind the losses of `scaled_intruders`, in words; empty where there was none."""
    left_out: list[str]
    """Changed modules that are not linear layers."""
    retrained: Retrained
    """Modules that the adapter holds as a whole, and trained tokens."""
    decomposed: int
    """Base weights that were decomposed now; the decompositions of the others were on disk."""
    seconds: float

    def as_data(self) -> dict[str, object]:
        """What JSON holds, with the counts of intruders at all thresholds."""
        data = self.model_dump(mode="json")
        found = self.intruders
        curve = {str(threshold): found.count(threshold) for threshold in THRESHOLDS}
        data["intruders"] |= {"count": found.count(), "vectors": found.vectors, "curve": curve}
        for name, layer in found.layers.items():
            data["intruders"]["layers"][name]["count"] = layer.count(found.threshold)
        return data


def inspect(
    adapter: str | Path | None = None,
    *,
    base: str | ModelSpec | None = None,
    model_b: str | ModelSpec | None = None,
    top_k: int | None = TOP_K,
    threshold: float = THRESHOLD,
    scale: Sequence[float] = (),
    data: DataSpec | None = None,
    task: str | None = None,
    cache: str | Path | None = None,
    on_phase: OnPhase = lambda phase: None,
    check: Check = no_check,
) -> Inspection:
    """Compute spectra and intruder dimensions of an adapter folder, of a run's folder, or of `model_b` against `base`.

    Args:
        adapter: a folder with an adapter of any PEFT method that changes weights, or a run's folder.
        base: the pretrained model; not needed where the run or the adapter names it.
        model_b: a fine-tuned model of the same architecture, instead of an adapter.
        top_k: singular vectors of each weight to examine; None for all.
        threshold: a vector is an intruder where its largest |cos| is below this number in (0, 1].
        scale: factors on the intruders' singular values, for the causal check.
        data: the labelled data for the loss of that check; a run's own test split unless given.
        task: the task of `data`, where its columns are ambiguous.
        cache: folder for the decompositions of W0; the run's own, or the user's cache, unless given.
        on_phase: called with the name of each phase.
        check: called every few seconds; may raise to stop.

    Returns:
        The spectra and intruders of every linear layer that changes.

    Raises:
        SpecError: arguments that exclude each other, or a number out of range.
        StoreError: a damaged adapter, or one of another base model.
        ModelError: a model that can't be loaded.
        MeasureError: no weight changes, or PEFT can't merge the method.

    Example:
        >>> import tempfile, torch, tunewise
        >>> from transformers import BertConfig, BertModel
        >>> folder = tempfile.mkdtemp()
        >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
        >>> BertModel(config).save_pretrained(f"{folder}/base")
        >>> model = tunewise.attach(BertModel.from_pretrained(f"{folder}/base"), "lora", rank=2)
        >>> _ = [torch.nn.init.normal_(p) for name, p in model.named_parameters() if "lora_B" in name]
        >>> _ = tunewise.save(model, f"{folder}/adapter")
        >>> inspection = tunewise.inspect(f"{folder}/adapter", base=f"{folder}/base", cache=folder)
        >>> [layer.rank for layer in inspection.spectrum.layers.values()]
        [2, 2]
    """
    begun = time.monotonic()
    _check_numbers(top_k, threshold, scale, data)
    subject = _open(adapter, base, model_b, on_phase)
    spectra = BaseSpectra(Path(cache) if cache is not None else subject.cache)
    on_phase("spectra")
    spectrum = spectra_of(subject.updates, spectra, check=check)
    on_phase("intruders")
    settings = IntruderSettings(top_k="all" if top_k is None else top_k, threshold=threshold)
    intruders = intruders_of(subject.updates, spectra, settings, check)
    scaled, scaled_on = list[ScaledIntruders](), ""
    if scale:
        on_phase("scaled intruders")
        model, score, scaled_on = _scoring(subject, data, task, check)
        scaled = scaling_curve(
            subject.updates, spectra, scale, threshold=threshold, top_k=top_k, model=model, score=score, check=check
        )
    return Inspection(
        of=subject.of,
        base=subject.base.path,
        family=subject.method or subject.updates.family,
        spectrum=spectrum,
        intruders=intruders,
        scaled_intruders=scaled,
        scaled_on=scaled_on,
        left_out=subject.updates.left_out,
        retrained=Retrained(modules={}, tokens={}) if subject.folder is None else retrained_by(subject.folder),
        decomposed=spectra.computed,
        seconds=time.monotonic() - begun,
    )


def _check_numbers(top_k: int | None, threshold: float, scale: Sequence[float], data: DataSpec | None) -> None:
    if not 0 < threshold <= 1:
        raise SpecError(f"threshold = {threshold:g}: it must lie in (0, 1]")
    if top_k is not None and top_k < 1:
        raise SpecError(f"top_k = {top_k}: at least 1, or None for all")
    if any(factor < 0 for factor in scale):
        raise SpecError(f"scale = {list(scale)}: factors must be at least 0")
    if data is not None and not scale:
        raise SpecError("data is for the loss at scaled intruders; give factors with scale (--scale 0,0.5,1)")


@dataclass(frozen=True)
class _Subject:
    of: str
    base: ModelSpec
    updates: Updates
    cache: Path
    folder: Path | None = None
    record: RunRecord | None = None
    task_type: str | None = None
    method: str | None = None


def _open(
    adapter: str | Path | None, base: str | ModelSpec | None, model_b: str | ModelSpec | None, on_phase: OnPhase
) -> _Subject:
    if (adapter is None) == (model_b is None):
        raise SpecError("give an adapter folder, or a second model to compare (model_b, --model-b), one of the two")
    if adapter is None:
        if base is None:
            raise SpecError("two models are compared: give the pretrained one as base")
        assert model_b is not None
        return _two_models(_model_spec(base), _model_spec(model_b), on_phase)
    record = _record(Path(adapter))
    folder = adapter_folder(adapter)
    named, task_type = base_of_adapter(folder)
    spec = _model_spec(base) if base is not None else record.spec.model if record else None
    if spec is None and named is None:
        raise SpecError(f"{adapter} does not name its base model; give it with base (--base)")
    spec = spec or ModelSpec(path=str(named))
    on_phase(f"loading {spec.path}")
    model = load_bare(spec, module_names(folder), task_type)
    on_phase("reading the adapter")
    updates = updates_of(folder, model)
    if not updates:
        beside = " ".join(["", *retrained_by(folder).describe()])
        raise MeasureError(f"{adapter}: no weight of the backbone changes, so there is no dW to look at.{beside}")
    if record is not None:
        if (folder / CHANGED).exists():
            _same_digest(folder, spec, record)
        of = f"{record.spec.method.label}, seed {record.spec.seed}, run {record.id}"
        cache = Path(adapter).resolve().parent / "cache" / FOLDER
        return _Subject(of, spec, updates, cache, folder, record, task_type, record.spec.method.name)
    named_method = read_attachment(folder).method.name if (folder / SIDECAR).exists() else None
    return _Subject(str(adapter), spec, updates, cache_folder() / FOLDER, folder, None, task_type, named_method)


def _two_models(base: ModelSpec, other: ModelSpec, on_phase: OnPhase) -> _Subject:
    on_phase(f"loading {base.path}")
    one = load_bare(base, [], "FEATURE_EXTRACTION")
    on_phase(f"loading {other.path}")
    two = load_bare(other, [], "FEATURE_EXTRACTION")
    updates = updates_between(one, two)
    if not updates:
        raise MeasureError(f"{base.path} has no linear layer to look at")
    return _Subject(f"{other.path} against {base.path}", base, updates, cache_folder() / FOLDER)


def _record(path: Path) -> RunRecord | None:
    if not (path / RECORD).exists():
        return None
    record = RunStore(path.resolve().parent).record(path.resolve().name)
    if record is not None and record.status != "done":
        raise StoreError(f"{path} is a run that ended as {record.status!r}, so there is nothing to look at")
    return record


def _model_spec(model: str | ModelSpec) -> ModelSpec:
    return ModelSpec(path=model) if isinstance(model, str) else model


def _same_digest(folder: Path, spec: ModelSpec, record: RunRecord) -> None:
    """Changed weights carry no fingerprint of W0, so the model's files are compared."""
    known = record.spec.model.digest
    if known is not None and model_digest(spec.model_copy(update={"digest": None})) != known:
        raise StoreError(f"{folder} was trained on another base model than {spec.path} (the hash of its files differs)")


def _scoring(
    subject: _Subject, data: DataSpec | None, task: str | None, check: Check
) -> tuple[nn.Module | None, Callable[[nn.Module], Scores] | None, str]:
    """The merged model with its head, what evaluates it, and on what; nothing where there is no data."""
    record = subject.record
    if subject.folder is None or (data is None and record is None):
        if data is not None:
            raise SpecError("two models are compared by their weights alone; remove data (--data)")
        return None, None, ""
    spec: RunSpec | StudySpec
    if record is not None:
        spec = record.spec.model_copy(update={"model": subject.base, **({"data": data} if data is not None else {})})
        seed = record.spec.seed
    else:
        assert data is not None
        chosen = task or ("causal" if subject.task_type == "CAUSAL_LM" else None)  # else known by the data's form
        spec = StudySpec(task=chosen, model=subject.base, data=data, methods=[MethodSpec(name="lora")])
        seed = 0
    built = build_task(spec)
    if record is not None and record.data is not None and built.labels != record.data.labels:
        raise SpecError(f"{spec.data.path} has the labels {built.labels[:6]}, and the run {record.data.labels[:6]}")
    split = built.test if data is None else [*built.train, *built.validation, *built.test]
    on = f"the run's test split ({len(split)})" if data is None else f"{data.path} ({len(split)})"

    def score(model: nn.Module) -> Scores:
        return evaluate(model, built, split, batch_size=32, on_batch=check).scores

    return _merged(subject.folder, built, seed), score, on


def _merged(folder: Path, task: Task, seed: int) -> nn.Module:
    base = task.load_model(seed)
    with refusal(MeasureError, f"{folder} can't be merged into a model with a head for this data"):
        stock = (folder / CONFIG).exists()
        loaded: Any = PeftModel.from_pretrained(base, str(folder)) if stock else load(base, folder)
        untie_adapted(loaded)
        merged: nn.Module = loaded.merge_and_unload() if isinstance(loaded, PeftModel) else loaded
    return merged.eval().requires_grad_(False)
