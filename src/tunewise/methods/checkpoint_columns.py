"""PaCA's trained columns in a checkpoint, bit for bit.

A checkpoint holds the stock adapter, W[:, cols] - W0[:, cols], and adding W0 again rounds once where a weight has
changed by more than a factor of two. A resumed run equals the uninterrupted one only with the columns as they are.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tunewise.methods.adapters.base import layer_adapters

FILE = "columns.safetensors"


def write_columns(model: nn.Module, checkpoint: Path, *, here: bool = True) -> None:
    """Put the trained columns beside the adapter in a checkpoint, on the process that writes (`here`)."""
    columns = _trained_columns(model)
    if columns and here:
        save_file({name: b.detach().cpu().contiguous() for name, b in columns.items()}, checkpoint / FILE)


@torch.no_grad()
def read_columns(model: nn.Module, checkpoint: Path) -> None:
    """Read them from the checkpoint that has just been loaded."""
    file = checkpoint / FILE
    if file.exists():
        saved = load_file(file)
        for name, b in _trained_columns(model).items():
            b.copy_(saved[name])


def _trained_columns(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{adapter.name}:{adapter.target.name}": adapter.exact_weights
        for adapter in layer_adapters(model)
        if adapter.exact_weights is not None
    }
