"""A saved folder, loaded again by stock PEFT, against the model that wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from tunewise.errors import StoreError
from tunewise.methods.attachment import attachment
from tunewise.methods.files import CHANGED
from tunewise.methods.loading import load
from tunewise.store.records import Check

TOLERANCE = 1e-4


@torch.no_grad()
def verify(model: nn.Module, path: Path, base: nn.Module, batch: Mapping[str, Tensor]) -> Check:
    """Compare the logits of `path`, loaded onto a fresh `base`, with the model's own: `StoreError` above 1e-4."""
    device = next(model.parameters()).device
    if attachment(model).method.adapts:
        again, loader = PeftModel.from_pretrained(base, str(path)), "peft.PeftModel.from_pretrained"
    else:
        again, loader = load(base, path), f"tunewise.load ({CHANGED})"
    expected = logits_of(model, batch)
    difference = float((logits_of(again.to(device), batch) - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise StoreError(
            f"{path}: loaded again it gives other logits (by {difference:.2g}); the folder is not to be used"
        )
    return Check(max_logit_difference=difference, examples=len(expected), loader=loader)


@torch.no_grad()
def logits_of(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The model's outputs on a batch, in eval mode."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
    logits: Tensor = model(**inputs).logits.float()
    model.train(training)
    return logits
