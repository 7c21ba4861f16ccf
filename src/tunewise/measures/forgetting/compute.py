"""Forgetting: how far fine-tuning moved the base model's own behaviour, on inputs that are not the task's.

Always the drift of the backbone's features; and where the checkpoint has a language-model head, its loss before and
after, with the head as it was and the tuned backbone under it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunewise.errors import MeasureError
from tunewise.measures._tensor_cache import read_tensors, save_tensors
from tunewise.measures.base import MeasureResult, MeasureSettings, Values
from tunewise.measures.finished import Check, FinishedRun, no_check
from tunewise.measures.forgetting.held_out import HeldOut, held_out, masked
from tunewise.models.language import language_model


class LanguageLoss(Values):
    """Mean loss of a passage in nats, by the checkpoint's language-model head."""

    kind: Literal["masked", "causal"]
    before: float
    after: float
    difference: float
    standard_error: float
    """Of the difference, over passages."""


class Drift(Values):
    """Of the features f1 of the tuned model from f0 of the base model: mean last hidden states over tokens."""

    drift: float
    """Mean over inputs of ||f1 - f0|| / ||f0||."""
    turn: float
    """Mean over inputs of 1 - cos(f0, f1)."""
    similarity: float
    """Linear CKA of both sets of features (arXiv 1905.00414, equation 3); 1 where nothing changed."""


class ForgettingResult(MeasureResult, Drift):
    source: str
    """The held-out inputs, in words."""
    loss: LanguageLoss | None = None


@torch.no_grad()
def compute(run: FinishedRun, settings: MeasureSettings, check: Check) -> ForgettingResult:
    """Raises `MeasureError` for a model without a separate backbone."""
    inputs = held_out(run)
    tuned = backbone(run.model)
    before = _base_behaviour(run, inputs)
    check()
    moved = drift(before.features, features(tuned, inputs, check))
    loss = None
    if before.losses is not None:
        losses = _language_losses(run, tuned, inputs, check)
        change = (losses - before.losses).double()
        loss = LanguageLoss(
            kind=before.kind,
            before=float(before.losses.mean()),
            after=float(losses.mean()),
            difference=float(change.mean()),
            standard_error=float(change.std() / math.sqrt(len(change))),
        )
    return ForgettingResult(source=inputs.source, loss=loss, **moved.model_dump())


def backbone(model: object) -> nn.Module:
    """The model under its head, adapters included. Raises `MeasureError` where there is none."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    prefix = getattr(inner, "base_model_prefix", "")
    found = getattr(inner, prefix, None) if prefix else None
    if found is None:
        raise MeasureError(f"{type(inner).__name__} has no backbone that could be taken from under its head")
    return found


@torch.no_grad()
def features(network: nn.Module, inputs: HeldOut, check: Check) -> Tensor:
    """Mean of the last hidden states over tokens, padding left out: (inputs, width), fp32 on the CPU."""
    device = next(network.parameters()).device
    rows = []
    for batch in inputs.batches:
        check()
        hidden = network(**{k: v.to(device) for k, v in batch.items()}).last_hidden_state.float().cpu()
        mask = batch.get("attention_mask", torch.ones(hidden.shape[:2]))
        if hidden.dim() == 4:  # channels first, as convolutional vision models have them
            hidden, mask = hidden.flatten(2).transpose(1, 2), torch.ones(len(hidden), hidden[0, 0].numel())
        weight = mask.float().unsqueeze(-1)
        rows.append((hidden * weight).sum(1) / weight.sum(1))
    return torch.cat(rows)


def drift(before: Tensor, after: Tensor) -> Drift:
    """Of two sets of features, (inputs, width) each."""
    f0, f1 = before.double(), after.double()
    length = f0.norm(dim=1).clamp(min=1e-12)
    cosine = F.cosine_similarity(f0, f1, dim=1).clamp(-1, 1)
    c0, c1 = f0 - f0.mean(0), f1 - f1.mean(0)
    within = (c0.T @ c0).norm() * (c1.T @ c1).norm()
    similarity = float((c1.T @ c0).square().sum() / within) if float(within) > 0 else 1.0
    return Drift(
        drift=float(((f1 - f0).norm(dim=1) / length).mean()),
        turn=float((1 - cosine).mean()),
        similarity=min(1.0, similarity),
    )


@dataclass(frozen=True)
class _Behaviour:
    features: Tensor
    losses: Tensor | None
    kind: Literal["masked", "causal"] = "masked"


def _base_behaviour(run: FinishedRun, inputs: HeldOut) -> _Behaviour:
    """Of the base model: computed once per base model and inputs, then read from the cache."""
    digest = run.spec.model.digest or run.spec.model.path.replace("/", "_")
    precision = f"{run.spec.model.dtype}-{run.spec.model.quantization}"
    file = run.cache / f"behaviour-{digest[:16]}-{precision}-{inputs.digest}.safetensors"
    cached = read_tensors(file)
    if cached is None:
        plain = backbone(run.base)
        cached = {"features": features(plain, inputs, no_check)}
        head = language_model(run.spec.model) if inputs.tokenizer is not None else None
        if head is not None:
            cached[f"losses, {head[0]}"] = _language_losses(run, plain, inputs, no_check)
        save_tensors(file, cached)
    masked_losses, causal_losses = cached.get("losses, masked"), cached.get("losses, causal")
    if causal_losses is not None:
        return _Behaviour(cached["features"], causal_losses, "causal")
    return _Behaviour(cached["features"], masked_losses)


def _language_losses(run: FinishedRun, network: nn.Module, inputs: HeldOut, check: Check) -> Tensor:
    """Mean loss of each passage, in nats, by the checkpoint's own head over `network`."""
    found = language_model(run.spec.model)
    assert found is not None
    kind, model = found[0], cast("Any", found[1])
    own = backbone(model)
    embeddings = network.get_input_embeddings().weight if model.config.tie_word_embeddings else None  # type: ignore
    setattr(model, model.base_model_prefix, network)
    decoder = model.get_output_embeddings()
    kept = decoder.weight
    try:
        if embeddings is not None:  # tied: where fine-tuning moved the embeddings, the decoder moved too
            decoder.weight = embeddings
        losses = []
        for number, batch in enumerate(inputs.batches):
            check()
            if kind == "masked":
                shown, labels = masked(batch, inputs.tokenizer, seed=number)
                logits = model(**shown).logits
            else:
                logits = model(**batch).logits[:, :-1]
                labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)[:, 1:]
            each = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none", ignore_index=-100)
            count = (labels != -100).sum(1)
            losses.append((each.sum(1) / count)[count > 0])  # a passage of unknown tokens alone says nothing
        return torch.cat(losses)
    finally:
        decoder.weight = kept
        setattr(model, model.base_model_prefix, own)
