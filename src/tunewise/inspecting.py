"""Look inside an adapter, whoever made it, or the difference of two models: spectra and intruder dimensions of every
layer, and what becomes of the loss where intruders are scaled.

    adapter -> its base model -> dW of each layer -> spectra, intruders -> (scaled intruders)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from tunewise.errors import MeasureError, SpecError, StoreError
from tunewise.locate import cache_folder
from tunewise.measures._linalg.base_spectra import FOLDER, BaseSpectra
from tunewise.measures.intruders.compute import (
    THRESHOLD,
    THRESHOLDS,
    TOP_K,
    LayerIntruders,
    all_intruders,
    curve,
    summary,
)
from tunewise.measures.intruders.scaled import Scaled, scaling_curve
from tunewise.measures.spectrum.compute import LayerSpectrum, all_spectra
from tunewise.measures.spectrum.compute import summary as spectrum_summary
from tunewise.measures.updates.folder import adapter_folder, module_names, updates_between, updates_of
from tunewise.measures.updates.layer import Updates
from tunewise.measures.updates.refusal import refusal
from tunewise.methods.adapter_files import CHANGED, CONFIG, SIDECAR, load, noted
from tunewise.models.bare import base_of_adapter, load_bare
from tunewise.models.load import model_digest
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, StudySpec
from tunewise.store.folders import RECORD, RunStore
from tunewise.store.records import RunRecord, Scores
from tunewise.tasks.build import build_task
from tunewise.tasks.contract import Task
from tunewise.training.evaluation import evaluate

Said = Callable[[str], None]


@dataclass(frozen=True)
class Inspection:
    """What was found. Layers are in the model's order."""

    of: str
    """The adapter, the run or the second model, in words."""
    base: str
    family: str
    """What made the update: 'cla', 'lora', 'dora', 'fft', 'full model', ...; the method's own name where it is on
    record, and else what the files are of."""
    top_k: int | None
    threshold: float
    spectra: list[LayerSpectrum]
    intruders: list[LayerIntruders]
    scaled: list[Scaled] = field(default_factory=list)
    scaled_on: str = ""
    """What the losses of `scaled` were taken on, in words; empty where there was no data."""
    left_out: list[str] = field(default_factory=list)
    """Changed modules that are no linear layers."""
    decomposed: int = 0
    """Base weights that were decomposed now; the others' decompositions were on disk."""
    seconds: float = 0.0

    def as_data(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return {
            "of": self.of,
            "base": self.base,
            "family": self.family,
            "spectrum": spectrum_summary(self.spectra),
            "intruders": {
                "top_k": "all" if self.top_k is None else self.top_k,
                "threshold": self.threshold,
                **summary(self.intruders, self.threshold),
                "curve": dict(zip(map(str, THRESHOLDS), curve(self.intruders))),
            },
            "scaled_intruders": [
                {
                    "factor": s.factor,
                    "count": s.count,
                    "loss": s.scores.loss if s.scores else None,
                    "metrics": s.scores.metrics if s.scores else {},
                }
                for s in self.scaled
            ],
            "scaled_on": self.scaled_on,
            "left_out": self.left_out,
            "decomposed": self.decomposed,
            "seconds": self.seconds,
        }


def inspect(
    adapter: str | Path | None = None,
    *,
    base: str | ModelSpec | None = None,
    model_b: str | ModelSpec | None = None,
    top_k: int | None = TOP_K,
    threshold: float = THRESHOLD,
    top_space: int | None = None,
    scale: Sequence[float] = (),
    data: DataSpec | None = None,
    task: str | None = None,
    cache: str | Path | None = None,
    said: Said = lambda phase: None,
    check: Callable[[], None] = lambda: None,
) -> Inspection:
    """Spectra and intruder dimensions of an adapter folder, of a run's folder, or of `model_b` against `base`.

    Args:
        adapter: any PEFT adapter that changes weights, whoever made it; a run's folder; `fft`'s or compact columns'.
        base: the pretrained model; may be left out where the run or the adapter names it.
        model_b: instead of an adapter: a fine-tuned model of the same architecture.
        top_k: how many singular vectors of each weight are looked at; None for all.
        threshold: a vector is an intruder where its largest |cos| is below this, a number in (0, 1].
        top_space: k of the energies inside W0's top space; the rank of dW unless given.
        scale: factors on the intruders' singular values, for the causal check.
        data: what the loss is taken on there; a run's own test split unless given.
        task: what `data` is for, where its form does not tell.
        cache: folder for W0's decompositions; the run's own, or the user's cache, unless given.
        said: told what is being done; check: called now and then, may raise to stop.

    Raises:
        SpecError: arguments that do not go together; a number out of range.
        StoreError, ModelError: a damaged adapter, one of another base model, a model that can't be loaded.
        MeasureError: nothing to look at; a method that PEFT can't merge.
    """
    begun = time.monotonic()
    if not 0 < threshold <= 1:
        raise SpecError(f"threshold = {threshold:g}: it must lie in (0, 1]")
    if top_k is not None and top_k < 1:
        raise SpecError(f"top_k = {top_k}: at least 1, or None for all")
    if any(factor < 0 for factor in scale):
        raise SpecError(f"scale = {list(scale)}: a factor below 0 is no scaling of a singular value")
    if data is not None and not scale:
        raise SpecError("data is for the loss at scaled intruders; give factors with scale (--scale 0,0.5,1)")
    subject = _open(adapter, base, model_b, said)
    spectra = BaseSpectra(Path(cache) if cache is not None else subject.cache)
    said("spectra")
    found = all_spectra(subject.updates, spectra, top_space, check)
    said("intruders")
    intruders = all_intruders(subject.updates, spectra, top_k, check)
    scaled: list[Scaled] = []
    on = ""
    if scale:
        said("scaled intruders")
        model, score, on = _scoring(subject, data, task, check)
        scaled = scaling_curve(
            subject.updates,
            spectra,
            scale,
            threshold=threshold,
            top_k=top_k,
            model=model,
            score=score,
            check=check,
        )
    return Inspection(
        subject.of,
        subject.base.path,
        subject.made_by or subject.updates.family,
        top_k,
        threshold,
        found,
        intruders,
        scaled,
        on,
        subject.updates.left_out,
        spectra.made,
        time.monotonic() - begun,
    )


@dataclass(frozen=True)
class _Subject:
    of: str
    base: ModelSpec
    updates: Updates
    cache: Path
    folder: Path | None = None
    record: RunRecord | None = None
    task_type: str | None = None
    made_by: str | None = None


def _open(
    adapter: str | Path | None, base: str | ModelSpec | None, model_b: str | ModelSpec | None, said: Said
) -> _Subject:
    if (adapter is None) == (model_b is None):
        raise SpecError("give an adapter folder, or a second model to compare (model_b, --model-b), one of the two")
    if adapter is None:
        if base is None:
            raise SpecError("two models are compared: give the pretrained one as base")
        assert model_b is not None
        return _two_models(_model_spec(base), _model_spec(model_b), said)
    record = _record(Path(adapter))
    folder = adapter_folder(adapter)
    named, task_type = base_of_adapter(folder)
    spec = _model_spec(base) if base is not None else record.spec.model if record else None
    if spec is None and named is None:
        raise SpecError(f"{adapter} does not name its base model; give it with base (--base)")
    spec = spec or ModelSpec(path=str(named))
    said(f"loading {spec.path}")
    model = load_bare(spec, module_names(folder), task_type)
    said("reading the adapter")
    updates = updates_of(folder, model)
    if not updates:
        raise MeasureError(f"{adapter}: no weight of the backbone changes, so there is no dW to look at")
    if record is not None:
        if (folder / CHANGED).exists():
            _same_digest(folder, spec, record)
        of = f"{record.spec.method.label}, seed {record.spec.seed}, run {record.id}"
        made_by = record.spec.method.name
        return _Subject(of, spec, updates, _store(adapter) / "cache" / FOLDER, folder, record, task_type, made_by)
    named_method = noted(folder).method.name if (folder / SIDECAR).exists() else None
    return _Subject(str(adapter), spec, updates, cache_folder() / FOLDER, folder, None, task_type, named_method)


def _two_models(base: ModelSpec, other: ModelSpec, said: Said) -> _Subject:
    said(f"loading {base.path}")
    one = load_bare(base, [], "FEATURE_EXTRACTION")
    said(f"loading {other.path}")
    two = load_bare(other, [], "FEATURE_EXTRACTION", flag="--model-b")
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


def _store(run: str | Path) -> Path:
    return Path(run).resolve().parent


def _model_spec(model: str | ModelSpec) -> ModelSpec:
    return ModelSpec(path=model) if isinstance(model, str) else model


def _same_digest(folder: Path, spec: ModelSpec, record: RunRecord) -> None:
    """Changed weights carry no fingerprint of W0, so the model's files are compared."""
    known = record.spec.model.digest
    if known is not None and model_digest(spec.model_copy(update={"digest": None})) != known:
        raise StoreError(
            f"{folder} was trained on another base model than {spec.path} (its files' hash is not this one's)"
        )


def _scoring(
    subject: _Subject, data: DataSpec | None, task: str | None, check: Callable[[], None]
) -> tuple[nn.Module | None, Callable[[nn.Module], Scores] | None, str]:
    """The merged model with its head, what evaluates it, and on what; nothing where there is no data."""
    record = subject.record
    if subject.folder is None or (data is None and record is None):
        if data is not None:
            raise SpecError("two models are compared by their weights alone; data is for adapters")
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
        merged: nn.Module = loaded.merge_and_unload() if isinstance(loaded, PeftModel) else loaded
    return merged.eval().requires_grad_(False)
