"""A saved folder, loaded again by stock PEFT, against the model that wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from tunewise.errors import StoreError
from tunewise.methods.attachment import adapted_layer, attachment
from tunewise.methods.delta import layer_delta
from tunewise.methods.files import CHANGED
from tunewise.methods.loading import load
from tunewise.store.records import Check

TOLERANCE = 1e-4
_UPDATE_TOLERANCE = 1e-5


@torch.no_grad()
def verify(model: nn.Module, path: Path, base: nn.Module, batch: Mapping[str, Tensor]) -> Check:
    """Compare the logits of `path`, loaded onto a fresh `base`, with the model's own: `StoreError` above 1e-4.

    In bf16 and fp16 two ways to compute the same sum differ by more, so there the updates dW decide."""
    device = next(model.parameters()).device
    if attachment(model).method.adapts:
        again, loader = PeftModel.from_pretrained(base, str(path)), "peft.PeftModel.from_pretrained"
    else:
        again, loader = load(base, path), f"tunewise.load ({CHANGED})"
    expected = logits_of(model, batch)
    difference = float((logits_of(again.to(device), batch) - expected).abs().max())
    same = difference <= TOLERANCE * max(1.0, float(expected.abs().max()))
    if not same and not (_computes_in_16_bits(model) and _same_updates(model, again)):
        raise StoreError(
            f"{path}: loaded again it gives other logits (by {difference:.2g}); the folder is not to be used"
        )
    return Check(max_logit_difference=difference, examples=len(expected), loader=loader)


def _computes_in_16_bits(model: nn.Module) -> bool:
    return any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())


def _same_updates(model: nn.Module, again: nn.Module) -> bool:
    """Whether stock PEFT computes the same dW for every layer, to fp32 rounding, and has the same trained modules."""
    done = attachment(model)
    if not done.method.adapts or done.method.passed_through:
        return False
    for target in done.targets:
        own, stock = layer_delta(model, target), adapted_layer(again, target).get_delta_weight("default").float()
        stock = stock.T if adapted_layer(again, target).fan_in_fan_out else stock
        if not float((own - stock.to(own.device)).abs().max()) <= _UPDATE_TOLERANCE * float(own.abs().max()):
            return False
    saved = again.state_dict()
    return all(
        torch.equal(tensor.cpu(), saved[name].cpu())
        for name, tensor in model.state_dict().items()
        if ".modules_to_save." in name
    )


@torch.no_grad()
def logits_of(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The model's outputs on a batch, in eval mode."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
    logits: Tensor = model(**inputs).logits.float()
    model.train(training)
    return logits
