"""Any method of the PEFT library by its own config (`peft:dora`, `peft:adalora`, `peft:vera`, ...), so that it stands
in every comparison as a row. It is PEFT's own from end to end, and it is saved in PEFT's own format.
"""

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
from tunewise.methods.inject import short_names, task_type, whole
from tunewise.models.layers import linear_layers


def pass_through(model: nn.Module, done: Attachment, options: Mapping[str, Any]) -> PeftModel:
    """A method of PEFT's own onto a model. Fused projections are adapted whole: PEFT has no slices.

    `options`: fields of PEFT's own config. Raises `SpecError` for one that it has not, and for a second adapter.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    whole = tuple(replace(t, parts=((0, t.out_features),)) for t in done.targets)
    config = peft_config(
        done.method.name.removeprefix("peft:"),
        rank=done.rank,
        alpha=done.alpha,
        target_modules=short_names([t.name for t in whole], list(linear_layers(base))),
        head=list(done.head),
        task_type=task_type(base),
        options=options,
    )
    if isinstance(model, PeftModel):
        raise SpecError(f"method {done.method.name!r} can't be a second adapter; give it a fresh base model")
    peft_model = _inject(model, config, done.adapter_name, done.seed)
    remember(peft_model, replace(done, targets=whole))
    return peft_model


def peft_config(
    name: str, *, rank: int, alpha: float, target_modules: list[str], head: list[str], task_type: Any, options: Mapping
) -> Any:
    """The config of PEFT's method `name` with our words for rank, alpha, targets and head; `options` win.

    Raises `SpecError` for an option that the method has not, or one that it needs and was not given.
    """
    lora = PEFT_LORA_OPTIONS.get(name)
    kind = LoraConfig if lora is not None else PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(name.upper())]
    fields = {field.name for field in dataclasses.fields(kind)}
    words: dict[str, Any] = {
        "r": rank,
        "lora_alpha": whole(alpha),
        "alpha": whole(alpha),
        "target_modules": target_modules,
        "modules_to_save": head or None,
        "task_type": task_type,
        **(lora or {}),
    }
    unknown = set(options) - fields
    if unknown:
        raise SpecError(f"peft:{name} has no option {min(unknown)!r}{suggest_nearest(min(unknown), fields)}")
    chosen = {key: value for key, value in words.items() if key in fields}
    if name == "oft":  # its rank and its block size exclude each other, and the block size has a default
        chosen["oft_block_size"] = 0
    if name == "ia3":  # which of the targets are feed-forward layers: none of ours by word
        chosen["feedforward_modules"] = []
    try:
        return kind(**{**chosen, **options})
    except (TypeError, ValueError) as error:
        raise SpecError(f"peft:{name}: {error}") from None


def _inject(model: nn.Module, config: Any, adapter_name: str, seed: int) -> Any:
    """PEFT's injection under the run's seed; the global generator is left where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config, adapter_name=adapter_name)
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(f"{config.peft_type.value.lower()} by PEFT can't be put on this model: {error}") from None


class RankAllocation(TrainerCallback):
    """AdaLoRA (and whatever else of PEFT's asks for it) reallocates its ranks after each optimizer step."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        allocate = getattr(getattr(kwargs["model"], "base_model", None), "update_and_allocate", None)
        if inspect.ismethod(allocate):
            allocate(state.global_step + 1)
