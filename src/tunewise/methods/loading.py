"""Load a saved method onto its base model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from tunewise.errors import StoreError, is_out_of_memory
from tunewise.methods.attach import attach
from tunewise.methods.attachment import Attachment, attachment
from tunewise.methods.files import (
    CHANGED,
    CONFIG,
    WEIGHTS,
    attachment_of,
    fingerprint,
    last_line,
    read_sidecar,
    read_tensors,
)


def load(base: nn.Module, path: str | Path, trainable: bool = False) -> Any:
    """The saved method on the base model that it was trained on.

    Args:
        base: the base model; `fft` and `head` write into it.
        path: a folder that `tunewise.save` wrote.
        trainable: put the method's behaviour on again, so that training can continue; else stock PEFT loads the folder.

    Returns:
        A `peft.PeftModel`; for `fft` and `head` the base model itself.

    Raises:
        StoreError: a damaged folder, a missing or unexpected tensor, or another base model.

    Example:
        >>> import tempfile, torch, tunewise
        >>> base = torch.nn.Sequential(torch.nn.Linear(8, 4))
        >>> weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
        >>> model = tunewise.attach(base, "cla", rank=2, targets=["0"])
        >>> folder = tunewise.save(model, tempfile.mkdtemp() + "/adapter")
        >>> fresh = torch.nn.Sequential(torch.nn.Linear(8, 4))
        >>> _ = fresh.load_state_dict(weights)
        >>> loaded = tunewise.load(fresh, folder, trainable=True)
        >>> tunewise.trainable_parameters(loaded)
        8
    """
    path = Path(path)
    notes = read_sidecar(path)
    done = attachment_of(notes)
    if notes["base"] is not None and fingerprint(base, done.targets) not in (None, notes["base"]):
        raise StoreError(f"{path} was trained on another base model (its weights' hash is not this one's)")
    if not done.method.adapts:
        return _load_changed(base, path, done, trainable)
    if not trainable:
        model = _load_stock(base, path)
        model.__dict__["tunewise"] = {done.adapter_name: done}
        return model
    if done.method.passed_through:
        model = PeftModel.from_pretrained(base, str(path), is_trainable=True)
        model.__dict__["tunewise"] = {"default": done}
        return model
    start = done.method if done.method.start == "zero" else replace(done.method, start="zero", where="random")
    options = {"rank": done.rank, "alpha": done.alpha, "targets": done.targets, "seed": done.seed}
    model = attach(base, start, **options, dropout=done.dropout, fold=done.fold)  # type: ignore[arg-type]
    restore(model, path)
    model.__dict__["tunewise"] = {"default": done}
    return model


def restore(model: nn.Module, path: str | Path) -> None:
    """Put saved tensors back into a model with the method that wrote them. Raises `StoreError`."""
    path = Path(path)
    done = attachment(model)
    if not done.method.adapts:
        _read_changed(model, path, complete=done.method.trained == "all")
        return
    try:
        result: Any = set_peft_model_state_dict(model, read_tensors(path / WEIGHTS), adapter_name=done.adapter_name)
    except (RuntimeError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        raise StoreError(f"{path} does not fit: {last_line(error)}") from None
    missing = [key for key in result.missing_keys if "lora_" in key or "modules_to_save" in key]
    if missing or result.unexpected_keys:
        raise StoreError(f"{path} does not fit: missing {missing[:2]}, unexpected {result.unexpected_keys[:2]}")


def _load_stock(base: nn.Module, path: Path) -> Any:
    """By PEFT; the tensors on disk and those in the model afterwards must be the same."""
    weights = read_tensors(path / WEIGHTS)
    try:
        json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path / CONFIG} can't be read: {error}") from None
    try:
        model = PeftModel.from_pretrained(base, str(path))
    except (RuntimeError, ValueError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        raise StoreError(f"{path} does not fit this model: {last_line(error)}") from None
    held = get_peft_model_state_dict(model, save_embedding_layers=False)
    for name in sorted(weights.keys() ^ held.keys()):
        raise StoreError(
            f"{path} does not fit: tensor {name} is {'not in the model' if name in weights else 'missing'}"
        )
    return model


def _load_changed(base: nn.Module, path: Path, done: Attachment, trainable: bool) -> nn.Module:
    _read_changed(base, path, complete=done.method.trained == "all")
    attach(base, done.method, seed=done.seed)
    if not trainable:
        base.requires_grad_(False)
    return base


def _read_changed(model: nn.Module, path: Path, *, complete: bool) -> None:
    """Copy the saved tensors into the model's own; `complete`: every parameter must be saved."""
    changed = read_tensors(path / CHANGED)
    own = dict(model.named_parameters())
    unknown = [name for name in changed if name not in own or own[name].shape != changed[name].shape]
    if unknown:
        raise StoreError(f"{path} does not fit this model: {unknown[0]} is not there, or has another shape")
    missing = [name for name in own if complete and name not in changed]
    if missing:
        raise StoreError(f"{path} is not whole: {missing[0]} is missing")
    with torch.no_grad():
        for name, tensor in changed.items():
            own[name].copy_(tensor)
