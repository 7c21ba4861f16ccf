"""What an adapter does to each weight, whatever wrote the adapter.

`updates_of` opens a folder: ours (any method, `fft` and `head`, compact columns) or any of the PEFT library's that
changes weights. `updates_between` takes two full models. The base model is read and never written.
"""

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
from tunewise.methods.draws import one_hot
from tunewise.methods.files import CHANGED, COLUMNS, CONFIG, SIDECAR, WEIGHTS, fingerprint, read_sidecar, read_tensors
from tunewise.models.bare import layers_of_adapter
from tunewise.models.head import head_modules
from tunewise.models.layers import Target, linear_layers, shape_of


def updates_of(adapter: str | Path, base: nn.Module) -> Updates:
    """What the adapter in a folder (or in a run's folder) does to each linear layer of its base model. Empty where no
    linear layer of the backbone changes (`head`).

    A layer with a low-rank update has its factors. For PEFT's methods whose update has none, or whose start moved the
    base weight (PiSSA, OLoRA), dW is what PEFT's own merge leaves minus the pretrained weight.

    Raises:
        StoreError: no adapter folder, a damaged one, one of another base model, one that changes no weights.
    """
    folder = adapter_folder(adapter)
    if (folder / SIDECAR).exists():
        _check_base(folder, base)
    if (folder / CHANGED).exists():
        return _of_changed(folder, base)
    if (folder / COLUMNS).exists():
        return _of_columns(folder, base)
    return updates_by_peft(folder, base)


def updates_of_run(run: FinishedRun) -> Updates:
    """The same of a finished run's adapter; `MeasureError` where there is nothing to measure, or it can't be."""
    try:
        updates = updates_of(run.adapter, run.base)
    except StoreError as reason:
        raise MeasureError(str(reason)) from None
    if not updates:
        raise MeasureError("no weight of the backbone changes")
    return updates


def updates_between(base: nn.Module, other: nn.Module) -> Updates:
    """W - W0 of every linear layer of two models of one architecture, the task head aside. Raises `StoreError` where
    their layers differ."""
    layers, others = backbone_layers(base), linear_layers(other)
    for name, module in layers.items():
        if name not in others or shape_of(others[name]) != shape_of(module):
            raise StoreError(f"the models differ in layer {name}; they must be of one architecture")
    found = [_difference(name, module, partial(weight_of, others[name])) for name, module in layers.items()]
    return Updates(found, "full model")


def adapter_folder(path: str | Path) -> Path:
    """The folder with the adapter itself: `path`, or `path/adapter` in a run's folder. Raises `StoreError`."""
    path = Path(path)
    for folder in (path, path / "adapter"):
        if any((folder / name).exists() for name in (CONFIG, CHANGED, COLUMNS)):
            return folder
    if not path.is_dir():
        raise StoreError(f"{path}: there is no such folder")
    hint = "; it is a whole model, which is compared by --model-b" if (path / "config.json").exists() else ""
    raise StoreError(f"{path} holds no {CONFIG}, {CHANGED} or {COLUMNS}, so it is no adapter folder{hint}")


def module_names(folder: Path) -> list[str]:
    """Names of the modules that the adapter in `folder` changes, as its files have them: by them one tells which form
    of the base model it is for. Empty where they can't be told. Raises `StoreError` for a damaged file."""
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
    """Every linear layer by name, the task head's and a language-model head's aside."""
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
        Target(t["name"], t["out_features"], t["in_features"], tuple((a, b) for a, b in t["parts"]))
        for t in notes["targets"]
    )
    if notes["base"] is not None and fingerprint(base, targets) not in (None, notes["base"]):
        raise StoreError(f"{folder} was trained on another base model (its weights' hash is not this one's)")


def _of_changed(folder: Path, base: nn.Module) -> Updates:
    changed, notes = read_tensors(folder / CHANGED), read_sidecar(folder)
    own = dict(base.named_parameters())
    heads = tuple(f"{name}." for name in {*head_modules(base), *notes["head"]})
    for name, tensor in changed.items():
        if name.startswith(heads or ("\0",)):
            continue  # of this run's classes, whatever the model at hand has
        if name not in own or own[name].shape != tensor.shape:
            raise StoreError(f"{folder} does not fit this model: {name} is not there, or has another shape")
    found = []
    for name, module in backbone_layers(base).items():
        stored = changed.get(f"{name}.weight")
        if stored is not None:
            found.append(_difference(name, module, partial(out_in, stored, module)))
    return Updates(found, notes["method"]["name"])


def _difference(name: str, base: nn.Module, after: Callable[[], Tensor]) -> LayerUpdate:
    return LayerUpdate.of_dense(name, base, lambda: after().double() - weight_of(base).double())


def _of_columns(folder: Path, base: nn.Module) -> Updates:
    tensors = read_tensors(folder / COLUMNS)
    linears = linear_layers(base)
    found = []
    for key, columns in tensors.items():
        if not key.endswith(".columns"):
            continue
        name = key.removesuffix(".columns")
        update = tensors.get(f"{name}.update")
        if name not in linears or update is None:
            missing = f"layer {name} is not there" if name not in linears else f"{name}.update is missing"
            raise StoreError(f"{folder} does not fit this model: {missing}")
        features = shape_of(linears[name])[1]
        if int(columns.min()) < 0 or int(columns.max()) >= features:
            raise StoreError(f"{folder} does not fit this model: layer {name} has {features} input columns")
        found.append(LayerUpdate.of_factors(name, linears[name], update, one_hot(columns.long(), features)))
    order = {name: i for i, name in enumerate(linears)}
    return Updates(sorted(found, key=lambda u: order[u.name]), read_sidecar(folder)["method"]["name"])
