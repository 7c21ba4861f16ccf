"""PaCA's trained columns in a checkpoint, bit for bit.

A checkpoint holds the stock adapter, W[:, cols] - W0[:, cols], and adding W0 again rounds once where a weight has
changed by more than a factor of two. For a resumed run to equal the uninterrupted one, the columns go along as they
are; methods whose trained tensor is the update itself need nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunewise.methods.attach import layer_adapters
from tunewise.methods.columns import ColumnAdapter

FILE = "columns.safetensors"


class ExactColumns(TrainerCallback):
    """Writes the columns into each checkpoint, and takes them from the one that the Trainer has just loaded."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        held = _held(kwargs["model"])
        if held:
            save_file({name: a.b.detach().cpu().contiguous() for name, a in held.items()}, _file(args, state))

    @torch.no_grad()
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        file = _file(args, state)
        if state.global_step and file.exists():
            saved = load_file(file)
            for name, adapter in _held(kwargs["model"]).items():
                adapter.b.copy_(saved[name])


def _held(model: nn.Module) -> dict[str, ColumnAdapter]:
    return {
        f"{adapter.name}:{adapter.target.name}": adapter
        for adapter in layer_adapters(model)
        if isinstance(adapter, ColumnAdapter) and adapter.holds_weights
    }


def _file(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / FILE
