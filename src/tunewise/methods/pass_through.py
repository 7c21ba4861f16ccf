"""Any method of the PEFT library by its own config (`peft:dora`, `peft:adalora`, ...), saved in PEFT's own format."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunewise.catalog import Method
from tunewise.errors import ModelError, SpecError, is_out_of_memory, suggest_nearest
from tunewise.methods.attachment import Attachment, remember
from tunewise.methods.peft_config import as_int, short_names, task_type
from tunewise.models.fused import Part
from tunewise.models.layers import Target, linear_layers


def pass_through(model: nn.Module, done: Attachment, options: Mapping[str, object]) -> PeftModel:
    """Put one of PEFT's own methods onto a model. Fused projections are adapted whole: PEFT has no slices."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    targets = tuple(replace(t, parts=(Part(0, t.out_features),)) for t in done.targets)
    names = short_names([t.name for t in targets], list(linear_layers(base)))
    if done.method.of_peft.trains_norms:
        targets, names = (), _norms_beside(base, done.targets)
    config = peft_config(
        done.method,
        rank=done.rank,
        alpha=done.alpha,
        targets=targets,
        target_modules=names,
        head=list(done.head),
        task_type=task_type(base),
        options=options,
    )
    if isinstance(model, PeftModel):
        raise SpecError(f"method {done.method.name!r} can't be a second adapter; give it a fresh base model")
    if start := done.method.describe_start(done.rank):
        warnings.warn(f"method {done.method.name!r} {start}", stacklevel=3)
    peft_model = _inject(model, config, done.adapter_name, done.seed)
    remember(peft_model, replace(done, targets=targets))
    return peft_model


def _norms_beside(base: nn.Module, targets: Sequence[Target]) -> list[str]:
    """Names of the norms in the blocks of these layers. Raises `ModelError` where there are none."""
    blocks = tuple({match[0] for target in targets if (match := re.match(r".*?\.\d+\.", target.name))})
    norms = [n for n, m in base.named_modules() if n.startswith(blocks or "\0") and "norm" in type(m).__name__.lower()]
    if not norms:
        raise ModelError("ln_tuning trains norms, and the blocks of these layers have none")
    return norms


def peft_config(
    method: Method,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[Target],
    target_modules: list[str],
    head: list[str],
    task_type: object,
    options: Mapping[str, object],
) -> Any:
    """The config of a method of PEFT; `options` win. Raises `SpecError` for an unknown or a missing option, and
    `ModelError` for a rank that does not fit the layers."""
    row, name = method.of_peft, method.name
    kind = LoraConfig if row.is_lora else PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(name.removeprefix("peft:").upper())]
    fields = {field.name for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {
        "lora_alpha": as_int(alpha),
        "alpha": as_int(alpha),
        "target_modules": target_modules,
        "modules_to_save": head or None,
        "task_type": task_type,
    }
    unknown = set(options) - fields
    if unknown:
        raise SpecError(f"{name} has no option {min(unknown)!r}{suggest_nearest(min(unknown), fields)}")
    chosen = {key: value for key, value in values.items() if key in fields} | row.options
    if row.fields_of_rank is not None:
        chosen |= _rank_fields(method, rank, targets)
    try:
        return kind(**{**chosen, **options})
    except (TypeError, ValueError) as error:
        raise SpecError(f"{name}: {error} (peft_options={{'FIELD': VALUE}} sets a field of PEFT's config)") from None


def _rank_fields(method: Method, rank: int, targets: Sequence[Target]) -> dict[str, Any]:
    """The fields of PEFT's config that a rank decides."""
    row = method.of_peft
    assert row.fields_of_rank is not None
    for target in targets:
        full = row.full_at(target.out_features, target.in_features) if row.full_at else rank
        if rank > full:
            raise ModelError(
                f"{method.name}: rank {rank} changes nothing in layer {target.name}, whose factors are whole from rank "
                f"{full} on; use rank <= {full}"
            )
    size = math.gcd(*(side for target in targets for side in (target.out_features, target.in_features)))
    try:
        return row.fields_of_rank(rank, size)
    except ValueError as error:
        raise ModelError(f"{method.name}: {error}") from None


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
