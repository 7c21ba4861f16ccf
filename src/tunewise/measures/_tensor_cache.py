"""Tensors in a cache on disk: written atomically and with a checksum, so that several processes may write one file and
damage is noticed."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tunewise.store.files import replacing


def save_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write fp32 or fp64 tensors atomically. A full disk is only a warning."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as scratch:
            save_file(plain, scratch, metadata={"format": "pt", "checksum": _checksum(plain)})
    except (OSError, SafetensorError) as error:
        warnings.warn(f"results can't be cached in {file.parent} ({error})", stacklevel=2)


def read_tensors(file: Path) -> dict[str, Tensor] | None:
    """What `save_tensors` wrote; None where there is no file, or it is damaged."""
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no dict
            written = (opened.metadata() or {}).get("checksum")
    except (OSError, SafetensorError):
        return None
    return tensors if written == _checksum(tensors) else None


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Of names, shapes and the sum of all values' bits as integers."""
    total = zlib.crc32(repr([(name, *tensors[name].shape) for name in sorted(tensors)]).encode())
    for name in sorted(tensors):
        bits = torch.int64 if tensors[name].dtype == torch.float64 else torch.int32
        total += int(tensors[name].contiguous().view(bits).sum())
    return f"{total % 2**64:016x}"
