"""Any method of the PEFT library by its own config (`peft:dora`, `peft:adalora`, ...), saved in PEFT's own format."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunewise.catalog import PEFT_LORA_OPTIONS
from tunewise.errors import ModelError, SpecError, is_out_of_memory, suggest_nearest
from tunewise.methods.attachment import Attachment, remember
from tunewise.methods.peft_config import as_int, short_names, task_type
from tunewise.models.fused import Part
from tunewise.models.layers import linear_layers


def pass_through(model: nn.Module, done: Attachment, options: Mapping[str, object]) -> PeftModel:
    """Put one of PEFT's own methods onto a model. Fused projections are adapted whole: PEFT has no slices."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    targets = tuple(replace(t, parts=(Part(0, t.out_features),)) for t in done.targets)
    config = peft_config(
        done.method.name.removeprefix("peft:"),
        rank=done.rank,
        alpha=done.alpha,
        target_modules=short_names([t.name for t in targets], list(linear_layers(base))),
        head=list(done.head),
        task_type=task_type(base),
        options=options,
    )
    if isinstance(model, PeftModel):
        raise SpecError(f"method {done.method.name!r} can't be a second adapter; give it a fresh base model")
    peft_model = _inject(model, config, done.adapter_name, done.seed)
    remember(peft_model, replace(done, targets=targets))
    return peft_model


def peft_config(
    name: str,
    *,
    rank: int,
    alpha: float,
    target_modules: list[str],
    head: list[str],
    task_type: object,
    options: Mapping,
) -> Any:
    """The config of PEFT's method `name`; `options` win. Raises `SpecError` for an unknown or a missing option."""
    lora = PEFT_LORA_OPTIONS.get(name)
    kind = LoraConfig if lora is not None else PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(name.upper())]
    fields = {field.name for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {
        "r": rank,
        "lora_alpha": as_int(alpha),
        "alpha": as_int(alpha),
        "target_modules": target_modules,
        "modules_to_save": head or None,
        "task_type": task_type,
        **(lora or {}),
    }
    unknown = set(options) - fields
    if unknown:
        raise SpecError(f"peft:{name} has no option {min(unknown)!r}{suggest_nearest(min(unknown), fields)}")
    chosen = {key: value for key, value in values.items() if key in fields}
    if name == "oft":  # its rank and its block size exclude each other, and the block size has a default
        chosen["oft_block_size"] = 0
    if name == "adalora":  # it starts with more ranks than it keeps, 12 for 8 by default
        chosen |= {"target_r": rank, "init_r": round(1.5 * rank)}
    if name == "ia3":  # none of the targets is treated as a feed-forward layer
        chosen["feedforward_modules"] = []
    try:
        return kind(**{**chosen, **options})
    except (TypeError, ValueError) as error:
        raise SpecError(f"peft:{name}: {error}") from None


def _inject(model: nn.Module, config: Any, adapter_name: str, seed: int) -> Any:
    """PEFT's injection under the run's seed, without a change of the global random generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config, adapter_name=adapter_name)
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(f"{config.peft_type.value.lower()} by PEFT can't be put on this model: {error}") from None


class RankAllocation(TrainerCallback):
    """Lets AdaLoRA (and any other of PEFT's methods that does so) reallocate its ranks after each optimizer step."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        allocate = getattr(getattr(kwargs["model"], "base_model", None), "update_and_allocate", None)
        if inspect.ismethod(allocate):
            allocate(state.global_step + 1)
