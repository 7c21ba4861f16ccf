"""The update of each weight by an adapter folder (of tunewise, or of any PEFT method that changes weights), or by a
second model. The base model is never written to."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.utils import PeftType
from torch import Tensor, nn

from tunewise.errors import MeasureError, StoreError
from tunewise.measures.finished import FinishedRun
from tunewise.measures.updates.layer import LayerUpdate, Updates, out_in, weight_of
from tunewise.measures.updates.peft import updates_by_peft
from tunewise.methods.files import CHANGED, CONFIG, SIDECAR, WEIGHTS, fingerprint, read_sidecar, read_tensors
from tunewise.models.bare import layers_of_adapter
from tunewise.models.fused import Part
from tunewise.models.head import head_modules
from tunewise.models.layers import Target, linear_layers, shape_of


def updates_of(adapter: str | Path, base: nn.Module) -> Updates:
    """The update of each linear layer by the adapter in a folder or in a run's folder; empty where no linear layer of
    the backbone changes (`head`). Raises `StoreError` for a folder without an adapter, a damaged adapter, or one of
    another base model."""
    folder = adapter_folder(adapter)
    if (folder / SIDECAR).exists():
        _check_base(folder, base)
    if (folder / CHANGED).exists():
        return _of_changed(folder, base)
    return updates_by_peft(folder, base)


def updates_of_run(run: FinishedRun) -> Updates:
    """Raises `MeasureError` where no weight changes, or the adapter can't be read."""
    try:
        updates = updates_of(run.adapter, run.base)
    except StoreError as reason:
        raise MeasureError(str(reason)) from None
    if not updates:
        raise MeasureError("no weight of the backbone changes")
    return updates


def updates_between(base: nn.Module, other: nn.Module) -> Updates:
    """W - W0 of every linear layer but the task head's. Raises `StoreError` where the models' layers differ."""
    layers, others = backbone_layers(base), linear_layers(other)
    for name, module in layers.items():
        if name not in others or shape_of(others[name]) != shape_of(module):
            raise StoreError(f"the models differ in layer {name}; they must be of one architecture")
    found = [_difference(name, module, partial(weight_of, others[name])) for name, module in layers.items()]
    return Updates(found, "full model")


def adapter_folder(path: str | Path) -> Path:
    """`path`, or `path/adapter` in a run's folder. Raises `StoreError` where neither has an adapter."""
    path = Path(path)
    for folder in (path, path / "adapter"):
        if any((folder / name).exists() for name in (CONFIG, CHANGED)):
            return folder
    if not path.is_dir():
        raise StoreError(f"{path}: there is no such folder")
    hint = "; it is a full model: compare it with --model-b" if (path / "config.json").exists() else ""
    raise StoreError(f"{path} holds neither {CONFIG} nor {CHANGED}, so it is not an adapter folder{hint}")


def module_names(folder: Path) -> list[str]:
    """Names of the changed modules in the files, which determine the class of the base model; empty where unknown."""
    if not (folder / CONFIG).exists():
        return layers_of_adapter(folder)
    try:
        kind = PeftType(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["peft_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder / CONFIG} can't be read: {error}") from None
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(kind, "lora_")
    file = folder / WEIGHTS
    keys = read_tensors(file) if file.exists() else {}
    found = (key.removeprefix("base_model.model.").partition(f".{prefix}") for key in keys)
    return list(dict.fromkeys(name for name, mark, _ in found if mark))


def backbone_layers(model: Any) -> dict[str, nn.Module]:
    """Every linear layer by name, without the task head and a language-model head."""
    heads = tuple(f"{name}." for name in head_modules(model))
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return {
        name: module
        for name, module in linear_layers(model).items()
        if not f"{name}.".startswith(heads or ("\0",)) and module is not output
    }


def _check_base(folder: Path, base: nn.Module) -> None:
    notes = read_sidecar(folder)
    targets = tuple(
        Target(t["name"], t["out_features"], t["in_features"], tuple(Part(*part) for part in t["parts"]))
        for t in notes["targets"]
    )
    if notes["base"] is not None and fingerprint(base, targets) not in (None, notes["base"]):
        raise StoreError(f"{folder} was trained on another base model (the hash of its weights differs)")


def _of_changed(folder: Path, base: nn.Module) -> Updates:
    changed, notes = read_tensors(folder / CHANGED), read_sidecar(folder)
    own = dict(base.named_parameters())
    heads = tuple(f"{name}." for name in {*head_modules(base), *notes["head"]})
    for name, tensor in changed.items():
        if name.startswith(heads or ("\0",)):
            continue  # the given model may have another head
        if name not in own or own[name].shape != tensor.shape:
            raise StoreError(f"{folder} does not fit this model: {name} is missing or has another shape")
    found = []
    for name, module in backbone_layers(base).items():
        stored = changed.get(f"{name}.weight")
        if stored is not None:
            found.append(_difference(name, module, partial(out_in, stored, module)))
    return Updates(found, notes["method"]["name"])


def _difference(name: str, base: nn.Module, after: Callable[[], Tensor]) -> LayerUpdate:
    return LayerUpdate.of_dense(name, base, lambda: after().double() - weight_of(base).double())
