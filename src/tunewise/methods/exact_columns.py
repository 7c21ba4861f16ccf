"""PaCA's trained columns in a checkpoint, bit for bit.

A checkpoint holds the stock adapter, W[:, cols] - W0[:, cols], and adding W0 again rounds once where a weight has
changed by more than a factor of two. For a resumed run to equal the uninterrupted one, the columns go along as they
are; methods whose trained tensor is the update itself need nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tunewise.methods.attachment import layer_adapters
from tunewise.methods.columns import ColumnAdapter

FILE = "columns.safetensors"


def write_columns(model: nn.Module, checkpoint: Path, *, here: bool = True) -> None:
    """Put the trained columns beside the adapter in a checkpoint, on the process that writes (`here`)."""
    held = {name: adapter.b.detach() for name, adapter in _held(model).items()}
    if held and here:
        save_file({name: columns.cpu().contiguous() for name, columns in held.items()}, checkpoint / FILE)


@torch.no_grad()
def read_columns(model: nn.Module, checkpoint: Path) -> None:
    """Take them from the checkpoint that has just been loaded."""
    file = checkpoint / FILE
    if file.exists():
        saved = load_file(file)
        for name, adapter in _held(model).items():
            adapter.b.copy_(saved[name])


def _held(model: nn.Module) -> dict[str, ColumnAdapter]:
    return {
        f"{adapter.name}:{adapter.target.name}": adapter
        for adapter in layer_adapters(model)
        if isinstance(adapter, ColumnAdapter) and adapter.holds_weights
    }
