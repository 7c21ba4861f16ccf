"""Save a method as a stock PEFT adapter."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn

from tunewise.errors import StoreError
from tunewise.methods.attachment import attachment
from tunewise.methods.files import CHANGED, CONFIG, SIDECAR, sidecar_of
from tunewise.store.files import follow_umask


def save(model: nn.Module, path: str | Path, adapter_name: str | None = None) -> Path:
    """Write the model's adapter, or its changed tensors, to a folder: all of it or nothing.

    The folder is a stock PEFT LoRA adapter that any LoRA reader loads, with `tunewise.json` beside it. `fft` and `head`
    write `changed.safetensors` instead.

    Args:
        model: a model that `tunewise.attach` returned.
        path: the folder; one that exists is replaced.
        adapter_name: PEFT's name of the adapter; the active one unless given.

    Returns:
        The folder.

    Raises:
        StoreError: a trained tensor is not finite: a diverged model is not saved.

    Example:
        >>> import tempfile, torch, tunewise
        >>> model = tunewise.attach(torch.nn.Sequential(torch.nn.Linear(8, 4)), "cla", rank=2, targets=["0"])
        >>> folder = tunewise.save(model, tempfile.mkdtemp() + "/adapter")
        >>> sorted(file.name for file in folder.iterdir())
        ['adapter_config.json', 'adapter_model.safetensors', 'tunewise.json']
    """
    done = attachment(model, adapter_name)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise StoreError(f"{name} holds NaN or infinity; a diverged model is not saved (lower the learning rate)")
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        if done.method.adapts:
            assert isinstance(model, PeftModel)
            _save_stock(model, scratch, done.adapter_name)
        else:
            changed = {n: p.detach().contiguous().cpu() for n, p in model.named_parameters() if p.requires_grad}
            save_file(changed, scratch / CHANGED, metadata={"format": "pt"})
        (scratch / SIDECAR).write_text(json.dumps(sidecar_of(model, done), indent=1) + "\n", encoding="utf-8")
        _replace_folder(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def _save_stock(model: PeftModel, folder: Path, adapter_name: str) -> None:
    model.save_pretrained(str(folder), selected_adapters=[adapter_name], save_embedding_layers=False)
    inner = folder / adapter_name
    if inner.is_dir():  # PEFT puts any adapter but "default" one level down
        for file in inner.iterdir():
            shutil.move(str(file), str(folder / file.name))
        inner.rmdir()
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    _sort_sets(folder / CONFIG, model.peft_config[adapter_name])


def _sort_sets(file: Path, config: object) -> None:
    """Sets in the configuration as sorted lists: their order is another one in every process."""
    written = json.loads(file.read_text(encoding="utf-8"))
    for key, value in vars(config).items():
        if isinstance(value, set) and isinstance(written.get(key), list):
            written[key] = sorted(written[key])
    file.write_text(json.dumps(written, indent=2, sort_keys=True), encoding="utf-8")


def _replace_folder(scratch: Path, path: Path) -> None:
    """`scratch` becomes `path`; the old folder is removed only once the new one is in place."""
    for file in scratch.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    follow_umask(scratch)
    if path.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
        os.replace(path, old / path.name)
        os.replace(scratch, path)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(scratch, path)
