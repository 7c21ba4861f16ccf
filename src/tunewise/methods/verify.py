"""A saved folder, loaded again by other hands than ours, against the model that wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from tunewise.errors import StoreError
from tunewise.methods.adapter_files import CHANGED, load
from tunewise.methods.attachment import attachment
from tunewise.store.records import Check

TOLERANCE = 1e-4


@torch.no_grad()
def verify(model: nn.Module, path: Path, base: nn.Module, batch: Mapping[str, Tensor]) -> Check:
    """Load `path` onto a fresh `base` by stock PEFT (or from its safetensors) and compare the logits on a batch.

    Raises `StoreError` where the largest difference is above 1e-4: such a folder must not be handed to anyone.
    """
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
    if attachment(model).method.adapts:
        again, loader = PeftModel.from_pretrained(base, str(path)), "peft.PeftModel.from_pretrained"
    else:
        again, loader = load(base, path), f"tunewise.load ({CHANGED})"
    expected = _logits(model, inputs)
    difference = float((_logits(again.to(device), inputs) - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise StoreError(
            f"{path}: loaded again it gives other logits (by {difference:.2g}); the folder is not to be used"
        )
    return Check(max_logit_difference=difference, examples=len(next(iter(inputs.values()))), loader=loader)


def _logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    training = model.training
    model.eval()
    logits: Tensor = model(**inputs).logits.float()
    model.train(training)
    return logits
