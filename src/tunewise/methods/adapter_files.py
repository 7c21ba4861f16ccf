"""Adapters on disk: stock PEFT LoRA folders with a small `tunewise.json` beside them; `fft` and `head` as the
safetensors of what changed. Any LoRA reader gives the same outputs from the former, without tunewise.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tunewise.catalog import Chain, Method, OptimizerRule
from tunewise.errors import StoreError, is_out_of_memory
from tunewise.methods.attach import attach
from tunewise.methods.attachment import Attachment, attachment
from tunewise.methods.fold import FoldingLayer
from tunewise.methods.row_space import one_hot
from tunewise.models.layers import Target, linear_layers

SIDECAR = "tunewise.json"
CHANGED = "changed.safetensors"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
COLUMNS = "columns.safetensors"
"""The compact form of a column method: {layer}.columns, {layer}.update with its scale in, and the head."""
FORMAT = 1


def save(model: nn.Module, path: str | Path, adapter_name: str | None = None) -> Path:
    """Write the model's adapter (or its changed tensors) to the folder `path`, whole or not at all.

    Raises `StoreError` where a tensor is not finite: a diverged model is never exported.
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
        notes = _describe(model, done)
        if getattr(model, "linearised", False):  # its scores are not those of the network that a reader loads
            notes["linearised"] = True
        (scratch / SIDECAR).write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")
        _replace_folder(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def load(base: nn.Module, path: str | Path, trainable: bool = False) -> Any:
    """The saved method on the base model that it was trained on.

    With `trainable` the method's behaviour is put on again and training can go on; else stock PEFT does the
    loading. `fft` and `head` write into `base` itself. Raises `StoreError` for a damaged folder, a missing or
    unexpected tensor, or another base model.
    """
    path = Path(path)
    notes = read_sidecar(path)
    done = _attachment_of(notes)
    if notes["base"] is not None and fingerprint(base, done.targets) not in (None, notes["base"]):
        raise StoreError(f"{path} was trained on another base model (its weights' hash is not this one's)")
    if not done.method.adapts:
        return _load_changed(base, path, done, trainable)
    if not trainable and not (path / COLUMNS).exists():
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
    if not trainable:
        model.requires_grad_(False)
    return model


def restore(model: nn.Module, path: str | Path) -> None:
    """Put saved tensors back into a model that carries the method which wrote them. Raises `StoreError`."""
    path = Path(path)
    done = attachment(model)
    if not done.method.adapts:
        _read_changed(model, path, whole=done.method.trained == "all")
        return
    weights = (
        _from_columns(read_tensors(path / COLUMNS), done) if (path / COLUMNS).exists() else read_tensors(path / WEIGHTS)
    )
    try:
        result: Any = set_peft_model_state_dict(model, weights, adapter_name=done.adapter_name)
    except (RuntimeError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        raise StoreError(f"{path} does not fit: {_first_line(error)}") from None
    missing = [key for key in result.missing_keys if "lora_" in key or "modules_to_save" in key]
    if missing or result.unexpected_keys:
        raise StoreError(f"{path} does not fit: missing {missing[:2]}, unexpected {result.unexpected_keys[:2]}")


def _from_columns(compact: dict[str, Tensor], done: Attachment) -> dict[str, Tensor]:
    """The stock form of a compact one: the one-hot A put back, the scale taken out of B."""
    features = {target.name: target.in_features for target in done.targets}
    weights = {key: tensor for key, tensor in compact.items() if not key.endswith((".columns", ".update"))}
    for key, columns in compact.items():
        if key.endswith(".columns"):
            layer = key.removesuffix(".columns")
            stem = f"base_model.model.{layer}"
            weights[f"{stem}.lora_A.weight"] = one_hot(columns.long(), features[layer])
            weights[f"{stem}.lora_B.weight"] = compact[f"{layer}.update"] / done.scale
    return weights


def _load_stock(base: nn.Module, path: Path) -> Any:
    """By PEFT's own hands; what is on disk and what is in the model afterwards must be the same tensors."""
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
        raise StoreError(f"{path} does not fit this model: {_first_line(error)}") from None
    held = get_peft_model_state_dict(model, save_embedding_layers=False)
    for name in sorted(weights.keys() ^ held.keys()):
        raise StoreError(
            f"{path} does not fit: tensor {name} is {'not in the model' if name in weights else 'missing'}"
        )
    return model


def read_tensors(file: Path) -> dict[str, Tensor]:
    """A safetensors file. Raises `StoreError` where it can't be read."""
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        if is_out_of_memory(error):
            raise
        raise StoreError(f"{file} can't be read: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:200]


def read_sidecar(path: Path) -> dict[str, Any]:
    """The folder's `tunewise.json`. Raises `StoreError` where there is none or it can't be read."""
    file = path / SIDECAR
    try:
        notes = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = "; it is a stock adapter, load it by PEFT" if (path / "adapter_config.json").exists() else ""
        raise StoreError(f"{path} holds no {SIDECAR}{hint}") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{file} can't be read: {error}") from None
    if notes.get("format") != FORMAT:
        raise StoreError(f"{file} has format {notes.get('format')!r}, and this version reads {FORMAT}")
    return notes


def noted(path: Path) -> Attachment:
    """What the folder's `tunewise.json` says was attached. Raises `StoreError`."""
    return _attachment_of(read_sidecar(path))


def fingerprint(model: nn.Module, targets: tuple[Target, ...]) -> str | None:
    """A hash over up to four adapted weights of W0 (all names and shapes, values rounded to bf16, so that one model
    loaded in two precisions is one model). None where a weight has no plain values (quantized, meta)."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    linears = linear_layers(base)
    digest = hashlib.sha256()
    for target in targets:
        digest.update(f"{target.name} {target.out_features} {target.in_features}\n".encode())
    for target in [*targets[:2], *targets[-2:]]:
        if target.name not in linears:
            return "absent"
        weight: Any = linears[target.name].weight
        holder = base.get_submodule(target.name)
        if isinstance(holder, FoldingLayer) and holder._fold is not None:
            weight = holder._fold.pristine()
        elif isinstance(holder, LoraLayer) and holder.merged:
            weight = getattr(holder, "_before_merge", None)  # PEFT keeps no copy of what it merged into
        if type(weight) not in (nn.Parameter, Tensor) or weight.is_meta or not weight.is_floating_point():
            return None
        values = weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy()
        digest.update(values.tobytes())
    return digest.hexdigest()


def _save_stock(model: PeftModel, folder: Path, adapter_name: str) -> None:
    model.save_pretrained(str(folder), selected_adapters=[adapter_name], save_embedding_layers=False)
    inner = folder / adapter_name
    if inner.is_dir():  # PEFT puts any adapter but "default" one level down
        for file in inner.iterdir():
            shutil.move(str(file), str(folder / file.name))
        inner.rmdir()
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    _order(folder / "adapter_config.json", model.peft_config[adapter_name])


def _order(file: Path, config: Any) -> None:
    """Sets in the configuration as sorted lists: PEFT writes them as each process happens to hold them, and the same
    adapter would be other bytes in another process."""
    written = json.loads(file.read_text(encoding="utf-8"))
    for key, value in vars(config).items():
        if isinstance(value, set) and isinstance(written.get(key), list):
            written[key] = sorted(written[key])
    file.write_text(json.dumps(written, indent=2, sort_keys=True), encoding="utf-8")


def _describe(model: nn.Module, done: Attachment) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "method": asdict(done.method),
        "rank": done.rank,
        "alpha": done.alpha,
        "seed": done.seed,
        "adapter_name": done.adapter_name,
        "dropout": done.dropout,
        "fold": done.fold,
        "head": list(done.head),
        "targets": [asdict(target) for target in done.targets],
        # PEFT's own methods may move the base's weights (pissa, olora), so there is nothing to recognise it by.
        "base": fingerprint(model, done.targets) if done.targets and not done.method.passed_through else None,
    }


def _attachment_of(notes: dict[str, Any]) -> Attachment:
    method = dict(notes["method"])
    method["chain"] = Chain(**method["chain"]) if method["chain"] else None
    method["optimizer"] = OptimizerRule(**method["optimizer"])
    targets = tuple(
        Target(t["name"], t["out_features"], t["in_features"], tuple((a, b) for a, b in t["parts"]))
        for t in notes["targets"]
    )
    return Attachment(
        Method(**method),
        notes["rank"],
        notes["alpha"],
        notes["seed"],
        targets,
        tuple(notes["head"]),
        "default",
        notes["dropout"],
        notes["fold"],
    )


def _load_changed(base: nn.Module, path: Path, done: Attachment, trainable: bool) -> nn.Module:
    _read_changed(base, path, whole=done.method.trained == "all")
    attach(base, done.method, seed=done.seed)
    if not trainable:
        base.requires_grad_(False)
    return base


def _read_changed(model: nn.Module, path: Path, *, whole: bool) -> None:
    """Copy the saved tensors into the model's own; `whole`: every parameter must be among them."""
    changed = read_tensors(path / CHANGED)
    own = dict(model.named_parameters())
    unknown = [name for name in changed if name not in own or own[name].shape != changed[name].shape]
    if unknown:
        raise StoreError(f"{path} does not fit this model: {unknown[0]} is not there, or has another shape")
    missing = [name for name in own if whole and name not in changed]
    if missing:
        raise StoreError(f"{path} is not whole: {missing[0]} is missing")
    with torch.no_grad():
        for name, tensor in changed.items():
            own[name].copy_(tensor)


def _replace_folder(scratch: Path, path: Path) -> None:
    """`scratch` becomes `path`; what was there goes away only once the new one is in place."""
    for file in scratch.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    scratch.chmod(0o755)
    if path.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
        os.replace(path, old / path.name)
        os.replace(scratch, path)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(scratch, path)
