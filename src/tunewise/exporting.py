"""Write a trained method in another form: stock LoRA, or merged into the model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn

from tunewise.errors import ExportError, SpecError, StoreError
from tunewise.methods.files import read_sidecar
from tunewise.methods.loading import load
from tunewise.methods.tied import untie_adapted
from tunewise.methods.verify import TOLERANCE, logits_of
from tunewise.models.layers import linear_layers
from tunewise.models.load import quiet_loading
from tunewise.models.quantization import is_fp32, to_fp32
from tunewise.store.files import follow_umask

Form = Literal["lora", "merged"]


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
        to: `"lora"`, the folder as any LoRA reader loads it; `"merged"`, the whole model with dW in its weights. A
            weight that is tied to another one (a language model's head) becomes separate.
        out: the folder to write; must not exist.
        base: for `merged`: the base model, which is changed.
        batch: for `merged`: inputs on which merged and unmerged logits are compared.
        dtype: for `merged`: the precision to write, the base's own unless given. A quantized base is dequantized.

    Returns:
        An `Exported`: `path`, `size`, `max_logit_difference`, `update_error`, and a `warning` or None.

    Raises:
        SpecError: `out` exists, or `merged` without a base.
        StoreError: a folder that can't be read.
        ExportError: the merged model does not compute what the adapter does; nothing is written then.

    Example:
        >>> import tempfile, torch, tunewise
        >>> model = tunewise.attach(torch.nn.Sequential(torch.nn.Linear(8, 4)), "cla", rank=2, targets=["0"])
        >>> folder = tunewise.save(model, tempfile.mkdtemp() + "/adapter")
        >>> exported = tunewise.export(folder, "lora", folder.parent / "lora")
        >>> (exported.path / "adapter_model.safetensors").exists()
        True
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
        elif to == "merged":
            if base is None:
                raise SpecError("a merged model needs its base: pass base=")
            difference, error = _write_merged(source, base, folder, batch, dtype)
        else:
            raise SpecError(f"unknown form {to!r}; choose lora or merged")
        follow_umask(folder)
        folder.rename(out)
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    return Exported(out, size, difference, error)


def _write_merged(
    source: Path, base: nn.Module, folder: Path, batch: Mapping[str, Tensor] | None, dtype: torch.dtype | None
) -> tuple[float | None, float | None]:
    if not is_fp32(base):  # a merge in fewer bits would be rounded before it can be checked
        dtype = dtype or _dtype_of(base)
        base = to_fp32(base)
        batch = batch and {key: x.float() if x.is_floating_point() else x for key, x in batch.items()}
    before = {name: _weight(module) for name, module in linear_layers(base).items()}
    model = load(base, source).eval()
    expected = None if batch is None else logits_of(model, batch)
    untie_adapted(model)
    merged: Any = model.merge_and_unload() if isinstance(model, PeftModel) else model
    if not hasattr(merged, "save_pretrained"):
        raise StoreError(f"{type(merged).__name__} can't be saved as a transformers model; use --to lora")
    changed = {n: _weight(m) - before[n] for n, m in linear_layers(merged).items() if n in before}
    difference = None
    if batch is not None and expected is not None:
        difference = float((logits_of(merged, batch) - expected).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise ExportError(
                f"the merged model gives other logits than the adapter (by {difference:.2g}), so nothing was written; "
                "use --to lora"
            )
    if dtype is not None:
        merged = merged.to(dtype)
    error = _update_error(before, changed, {n: _weight(m) for n, m in linear_layers(merged).items()}, dtype)
    merged.save_pretrained(str(folder))
    _check_saved(merged, folder)
    return difference, error


def _check_saved(model: Any, folder: Path) -> None:
    """Raise `ExportError` where transformers does not load the saved model as it was."""
    with quiet_loading():
        saved = type(model).from_pretrained(folder, dtype=model.dtype).state_dict()
    for name, tensor in model.state_dict().items():
        if name not in saved or not torch.equal(saved[name], tensor.cpu()):
            raise ExportError(f"the saved model has another {name} than the merged one, so nothing was written")


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


def _dtype_of(model: nn.Module) -> torch.dtype:
    """The precision that most weights are used in: of packed ones the one that they are dequantized to."""
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def _weight(module: Any) -> Tensor:
    return module.weight.detach().clone().float()
