"""Adapters that may be folded, the plain model with their update in its weights, and what the two have to share."""

from __future__ import annotations

from typing import Any

import torch

import tunewise
from contracts import models

RANK = 4


def attach(name: str = "cla", kind: str = "gpt2", model: Any = None, **options: Any) -> Any:
    return tunewise.attach(models.make(kind) if model is None else model, name, rank=RANK, **options)


def folded_layers(model: Any) -> list[Any]:
    return [m for m in model.modules() if getattr(m, "_fold", None) is not None]


def by_hand(model: Any, kind: str, *adapters: str, weights: dict[str, float] | None = None) -> Any:
    """The plain model with scale * B A of the saved form of each named adapter in its weights."""
    plain, state = models.make(kind), model.state_dict()
    dtype = next(iter(state.values())).dtype
    plain = plain.to(dtype)
    for name in adapters:
        done = tunewise.attachment(model, name)
        for target in done.targets:
            a, b = (state[f"base_model.model.{target.name}.lora_{f}.{name}.weight"] for f in "AB")
            weight = plain.get_submodule(target.name).weight
            dense = done.scale * (weights or {}).get(name, 1.0) * (b.double() @ a.double())
            weight.data += (dense.T if kind == "gpt2" else dense).to(dtype)
    return plain


def same_outputs(model: Any, kind: str, *adapters: str, atol: float = 1e-5) -> None:
    inputs = models.batch(kind)
    expected = models.logits(by_hand(model, kind, *adapters), inputs)
    torch.testing.assert_close(models.logits(model, inputs), expected, rtol=0, atol=atol)


def factors(model: Any) -> list[torch.nn.Parameter]:
    return [p for name, p in model.named_parameters() if "lora_B" in name]
