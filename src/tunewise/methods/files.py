"""Files of a saved method: a stock PEFT LoRA folder with a small `tunewise.json` beside it; for `fft` and `head` the
safetensors of what changed. Any LoRA reader gives the same outputs from the former, without tunewise.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tunewise.errors import StoreError, is_out_of_memory
from tunewise.methods.attachment import Attachment
from tunewise.methods.folding_layer import unfolded_weight
from tunewise.models.layers import Target, linear_layers

SIDECAR = "tunewise.json"
CHANGED = "changed.safetensors"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
FORMAT = 2


def read_tensors(file: Path) -> dict[str, Tensor]:
    """A safetensors file. Raises `StoreError` where it can't be read."""
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        if is_out_of_memory(error):
            raise
        raise StoreError(f"{file} can't be read: {last_line(error)}") from None


def last_line(error: BaseException) -> str:
    """The last line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:200]


def read_sidecar(path: Path) -> dict[str, Any]:
    """The folder's `tunewise.json`. Raises `StoreError` where it is missing or can't be read."""
    file = path / SIDECAR
    try:
        notes = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = "; it is a stock adapter, load it by PEFT" if (path / CONFIG).exists() else ""
        raise StoreError(f"{path} holds no {SIDECAR}{hint}") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{file} can't be read: {error}") from None
    if notes.get("format") != FORMAT:
        raise StoreError(f"{file} has format {notes.get('format')!r}, and this version reads {FORMAT}")
    return notes


def sidecar_of(model: nn.Module, done: Attachment) -> dict[str, object]:
    """The content of `tunewise.json` for a model."""
    # PEFT's own methods may change the base's weights (pissa, olora), so these do not identify the base.
    identified = done.targets and not done.method.passed_through
    notes = {"format": FORMAT, **asdict(done), "base": fingerprint(model, done.targets) if identified else None}
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if type(base).__name__.endswith("Classification"):  # which PEFT's configuration has no place for
        notes["id2label"] = base.config.id2label
    if getattr(model, "linearised", False):  # its scores are not those of the network that a reader loads
        notes["linearised"] = True
    return notes


def attachment_of(notes: dict[str, object]) -> Attachment:
    """The inverse of `sidecar_of`, under PEFT's default adapter name."""
    return TypeAdapter(Attachment).validate_python({**notes, "adapter_name": "default"})


def read_attachment(path: Path) -> Attachment:
    """What was attached, by the folder's `tunewise.json`. Raises `StoreError`."""
    return attachment_of(read_sidecar(path))


def fingerprint(model: nn.Module, targets: tuple[Target, ...]) -> str | None:
    """A hash over up to four adapted weights of W0, rounded to bf16; None for weights without plain values."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    linears = linear_layers(base)
    digest = hashlib.sha256()
    for target in targets:
        digest.update(f"{target.name} {target.out_features} {target.in_features}\n".encode())
    for target in [*targets[:2], *targets[-2:]]:
        if target.name not in linears:
            return "absent"
        weight: Any = unfolded_weight(base.get_submodule(target.name))
        if type(weight) not in (nn.Parameter, Tensor) or weight.is_meta or not weight.is_floating_point():
            return None
        values = weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy()
        digest.update(values.tobytes())
    return digest.hexdigest()
