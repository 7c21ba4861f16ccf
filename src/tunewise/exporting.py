"""Write a trained method in another form: stock LoRA, merged into the model, or compact columns."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from peft.utils.save_and_load import load_peft_weights
from safetensors.torch import save_file
from torch import Tensor, nn

from tunewise.errors import SpecError, StoreError
from tunewise.methods.files import COLUMNS, SIDECAR, read_sidecar
from tunewise.methods.loading import load
from tunewise.methods.verify import logits_of
from tunewise.models.layers import linear_layers

Form = Literal["lora", "merged", "columns"]


@dataclass(frozen=True)
class Exported:
    """The written folder, its size in bytes, and what rounding lost (`update_error`: relative, Frobenius norm)."""

    path: Path
    size: int
    max_logit_difference: float | None = None
    update_error: float | None = None

    @property
    def warning(self) -> str | None:
        """One sentence where rounding loses a good part of the update."""
        if self.update_error is None or self.update_error < 0.02:
            return None
        return (
            f"rounding to this precision loses {self.update_error:.0%} of the update (relative Frobenius norm); "
            "keep the adapter apart, or merge in fp32"
        )


def export(
    adapter: str | Path,
    to: Form,
    out: str | Path,
    *,
    base: nn.Module | None = None,
    batch: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Exported:
    """Write a saved adapter folder in another form.

    Args:
        adapter: a folder written by `tunewise.save` (a run's `adapter/`).
        to: `"lora"`, the folder as any LoRA reader loads it; `"merged"`, the whole model with dW in its weights;
            `"columns"`, for column methods: indices and columns alone, without the one-hot A.
        out: the folder to write; must not exist.
        base: for `merged`: the base model, which is changed.
        batch: for `merged`: inputs on which merged and unmerged logits are compared.
        dtype: for `merged`: the precision to write, the base's own unless given.

    Returns:
        An `Exported`: `path`, `size`, `max_logit_difference`, `update_error`, and a `warning` or None.

    Raises:
        SpecError: `out` exists, `merged` without a base, `columns` of a method that has none.
        StoreError: a folder that can't be read.

    Example:
        >>> import tempfile, torch, tunewise
        >>> model = tunewise.attach(torch.nn.Sequential(torch.nn.Linear(8, 4)), "cla", rank=2, targets=["0"])
        >>> folder = tunewise.save(model, tempfile.mkdtemp() + "/adapter")
        >>> exported = tunewise.export(folder, "columns", folder.parent / "columns")
        >>> sorted(file.name for file in exported.path.iterdir())
        ['columns.safetensors', 'tunewise.json']
    """
    source, out = Path(adapter), Path(out)
    notes = read_sidecar(source)
    if out.exists():
        raise SpecError(f"{out} is there already; name another folder, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        folder = Path(scratch) / out.name
        difference = error = None
        if to == "lora":
            if not (source / "adapter_config.json").exists():
                raise SpecError(
                    f"{source} is of method {notes['method']['name']!r}, which is no adapter; use --to merged"
                )
            shutil.copytree(source, folder)
        elif to == "columns":
            _write_columns(source, notes, folder)
        elif to == "merged":
            if base is None:
                raise SpecError("a merged model needs its base: pass base=")
            difference, error = _write_merged(source, base, folder, batch, dtype)
        else:
            raise SpecError(f"unknown form {to!r}; choose lora, merged or columns")
        folder.rename(out)
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    return Exported(out, size, difference, error)


def _write_columns(source: Path, notes: dict[str, Any], folder: Path) -> None:
    """{layer}.columns int32 (k r,) and {layer}.update (n, k r) with its scale in; the head's tensors as they are."""
    method = notes["method"]
    if method["trained"] not in ("B", "columns") or method["where"] not in ("selector", "sampled"):
        raise SpecError(f"method {method['name']!r} trains no columns; use --to lora")
    config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    weights = load_peft_weights(str(source), device="cpu")
    compact: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        if ".lora_A." in key:
            layer = key.split(".lora_A.")[0].removeprefix("base_model.model.")
            columns = tensor.argmax(dim=1)
            rank = tensor.shape[0]
            alpha = config["alpha_pattern"].get(layer, config["lora_alpha"])
            compact[f"{layer}.columns"] = columns.to(torch.int32)
            compact[f"{layer}.update"] = (weights[key.replace(".lora_A.", ".lora_B.")] * (alpha / rank)).contiguous()
        elif ".lora_B." not in key:
            compact[key] = tensor.contiguous()
    folder.mkdir()
    save_file(compact, folder / COLUMNS, metadata={"format": "pt"})
    shutil.copy(source / SIDECAR, folder / SIDECAR)


def _write_merged(
    source: Path, base: nn.Module, folder: Path, batch: Mapping[str, Tensor] | None, dtype: torch.dtype | None
) -> tuple[float | None, float | None]:
    before = {name: _weight(module) for name, module in linear_layers(base).items()}
    model = load(base, source).eval()
    expected = None if batch is None else logits_of(model, batch)
    merged: Any = model.merge_and_unload() if isinstance(model, PeftModel) else model
    changed = {n: _weight(m) - before[n] for n, m in linear_layers(merged).items() if n in before}
    if dtype is not None:
        merged = merged.to(dtype)
    error = _update_error(before, changed, {n: _weight(m) for n, m in linear_layers(merged).items()}, dtype)
    difference = None
    if batch is not None and expected is not None:
        difference = float((logits_of(merged, batch) - expected).abs().max())
    if not hasattr(merged, "save_pretrained"):
        raise StoreError(f"{type(merged).__name__} can't be saved as a transformers model; use --to lora")
    merged.save_pretrained(str(folder))
    return difference, error


def _update_error(
    before: Mapping[str, Tensor], update: Mapping[str, Tensor], after: Mapping[str, Tensor], dtype: torch.dtype | None
) -> float | None:
    """|| (W_merged - W0) - dW || / || dW || over all layers, W0 as the merged model's precision holds it."""
    lost = total = 0.0
    for name, dw in update.items():
        start = before[name] if dtype is None else before[name].to(dtype).float()
        lost += float(((after[name] - start - dw) ** 2).sum())
        total += float((dw**2).sum())
    return (lost / total) ** 0.5 if total > 0 else None


def _weight(module: Any) -> Tensor:
    return module.weight.detach().clone().float()
