"""Forgetting: how far fine-tuning moved the base model's own behaviour, on inputs that are not the task's.

Always the drift of the backbone's features; and where the checkpoint has a language-model head, its loss before and
after, with the head as it was and the tuned backbone under it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunewise.errors import MeasureError
from tunewise.measures._tensor_cache import keep_tensors, read_tensors
from tunewise.measures.finished import FinishedRun
from tunewise.measures.forgetting.held_out import HeldOut, held_out, masked
from tunewise.models.language import language_model


@torch.no_grad()
def forgetting(run: FinishedRun, check: Callable[[], None]) -> dict[str, Any]:
    """The measure. Values:

    - `source`: the held-out inputs in words;
    - `drift`: mean over inputs of ||f1 - f0|| / ||f0||, f the mean of the last hidden states over tokens;
    - `turn`: mean over inputs of 1 - cos(f0, f1);
    - `similarity`: linear CKA of the two sets of features (arXiv 1905.00414, equation 3), 1 where nothing changed;
    - `loss`: where there is a language-model head, `kind` ('masked' or 'causal'), mean loss a passage in nats
      `before` and `after`, their `difference` and its `standard_error` over passages.

    Raises `MeasureError` for a model whose backbone can't be told from its head.
    """
    inputs = held_out(run)
    tuned = backbone(run.model)
    before = _base_behaviour(run, inputs)
    check()
    after = features(tuned, inputs, check)
    found: dict[str, Any] = {"source": inputs.source, **drift(before["features"], after)}
    if "losses" in before:
        losses = _language_losses(run, tuned, inputs, check)
        change = (losses - before["losses"]).double()
        found["loss"] = {
            "kind": before["kind"],
            "before": float(before["losses"].mean()),
            "after": float(losses.mean()),
            "difference": float(change.mean()),
            "standard_error": float(change.std() / math.sqrt(len(change))),
        }
    return found


def backbone(model: Any) -> nn.Module:
    """The model under its head, adapters and all. Raises `MeasureError` where there is none by that name."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    prefix = getattr(inner, "base_model_prefix", "")
    found = getattr(inner, prefix, None) if prefix else None
    if found is None:
        raise MeasureError(f"{type(inner).__name__} has no backbone that could be taken from under its head")
    return found


@torch.no_grad()
def features(network: nn.Module, inputs: HeldOut, check: Callable[[], None]) -> Tensor:
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


def drift(before: Tensor, after: Tensor) -> dict[str, float]:
    """How far two sets of features, (inputs, width) each, lie apart; see `forgetting`."""
    f0, f1 = before.double(), after.double()
    length = f0.norm(dim=1).clamp(min=1e-12)
    cosine = F.cosine_similarity(f0, f1, dim=1).clamp(-1, 1)
    c0, c1 = f0 - f0.mean(0), f1 - f1.mean(0)
    within = (c0.T @ c0).norm() * (c1.T @ c1).norm()
    similarity = float((c1.T @ c0).square().sum() / within) if float(within) > 0 else 1.0
    return {
        "drift": float(((f1 - f0).norm(dim=1) / length).mean()),
        "turn": float((1 - cosine).mean()),
        "similarity": min(1.0, similarity),
    }


def _base_behaviour(run: FinishedRun, inputs: HeldOut) -> dict[str, Any]:
    """Features and losses of the base model, computed once per base model and inputs, then read from the cache."""
    digest = run.spec.model.digest or run.spec.model.path.replace("/", "_")
    file = run.cache / f"behaviour-{digest[:16]}-{inputs.digest}.safetensors"
    kept = read_tensors(file)
    if kept is None:
        plain = backbone(run.base)
        kept = {"features": features(plain, inputs, lambda: None)}
        known_head = language_model(run.spec.model) if inputs.tokenizer is not None else None
        if known_head is not None:
            kept[f"losses, {known_head[0]}"] = _language_losses(run, plain, inputs, lambda: None)
        keep_tensors(file, kept)
    known: dict[str, Any] = {"features": kept["features"]}
    for name in kept.keys() - {"features"}:
        known |= {"losses": kept[name], "kind": name.removeprefix("losses, ")}
    return known


def _language_losses(run: FinishedRun, network: nn.Module, inputs: HeldOut, check: Callable[[], None]) -> Tensor:
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
        if embeddings is not None:  # one tensor in the checkpoint: where fine-tuning moved it, it moved here too
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
