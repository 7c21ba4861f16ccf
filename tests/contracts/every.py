"""Each method of the catalog on four architectures: attached, trained for two steps, grown to three links.

q and v are adapted; GPT-2's are slices of a fused projection.
"""

from __future__ import annotations

import copy
import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tunewise
from contracts import models
from contracts.toy_method import ROW
from tunewise import CATALOG, Method

METHODS: dict[str, Method] = {**CATALOG, ROW.name: ROW}
RANK = 4
KINDS = ["bert", "gpt2", "llama", "vit"]
NOT_OFFERED = {("head", "gpt2")}  # a language model has no task head
TARGETS = {("cla-rows", "gpt2"): ["c_fc"]}  # rows of a fused projection are refused


def targets_of(name: str, kind: str) -> Any:
    return TARGETS.get((name, kind), "qv")


def combinations(*, adapters: bool = False) -> Any:
    """(method, model) over the catalog and a toy method, as pytest parameters; only methods with an adapter where asked.
    Each method on two architectures in turn; those on the other two are slow tests."""
    return pytest.mark.parametrize(
        ("name", "kind"),
        [
            pytest.param(name, kind, id=f"{name}-{kind}", marks=[pytest.mark.slow] if (i + j // 2) % 2 else [])
            for i, (name, method) in enumerate(METHODS.items())
            for j, kind in enumerate(KINDS)
            if (name, kind) not in NOT_OFFERED and (method.adapts or not adapters)
        ],
    )


def attach(name: str | Method, kind: str, **options: Any) -> Any:
    method = METHODS[name] if isinstance(name, str) else name
    if method.start == "gradient":
        options.setdefault("batches", [models.batch(kind, seed=7)])
    options.setdefault("targets", targets_of(method.name, kind))
    return tunewise.attach(models.make(kind), method, rank=RANK, **options)


@functools.cache
def trained(name: str, kind: str) -> SimpleNamespace:
    """A model of which plain AdamW has taken two steps, and what it was before. Not to be changed: copy it."""
    return stepped(attach(name, kind), kind)


def stepped(model: Any, kind: str) -> SimpleNamespace:
    """Two steps of plain AdamW; `felt`: what got a gradient other than 0; `finite`: whether all gradients were."""
    saved = {key: value.clone() for key, value in model.state_dict().items()}
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    wanted = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(wanted, lr=1e-2, fused=True)
    felt, finite = set(), True
    for _ in range(2):
        model(**models.batch(kind)).loss.backward()
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        felt |= {key for key, gradient in gradients.items() if bool(gradient.any())}
        finite &= all(bool(gradient.isfinite().all()) for gradient in gradients.values())
        optimizer.step()
        optimizer.zero_grad()
    return SimpleNamespace(model=model, saved=saved, before=before, felt=felt, finite=finite)


def is_base(key: str) -> bool:
    return "lora_" not in key and "modules_to_save" not in key


@functools.cache
def grown(name: str, kind: str) -> Any:
    """Trained for two steps; a chain for two more in each of two further links."""
    model = copy.deepcopy(trained(name, kind).model)
    if METHODS[name].chain is not None:
        for _ in range(2):
            tunewise.restart(model)
            models.train(model, models.batch(kind), steps=2)
    return model
