"""PEFT's injection of LoRA layers, with rank, alpha, targets and task in its config."""

from __future__ import annotations

import math
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunewise.methods.attachment import Attachment
from tunewise.models.layers import linear_layers


def inject_lora(model: nn.Module, done: Attachment) -> PeftModel:
    """PEFT's own injection, without a change of the global random generator."""
    fused = {t.name: len(t.parts) * done.rank for t in done.targets if t.fused}
    # PEFT's root scaling fits one factor pair a layer; elsewhere alpha is set so that alpha / rank is the scale.
    plain = done.method.trained == "AB" and done.method.chain is None and not fused
    by_root = done.method.scaling == "alpha/sqrt(r)" and plain
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    linears = linear_layers(base)
    config = LoraConfig(
        r=done.rank,
        lora_alpha=as_int(
            done.scale * done.rank if done.method.scaling == "alpha/sqrt(r)" and not by_root else done.alpha
        ),
        lora_dropout=done.dropout,
        target_modules=short_names([t.name for t in done.targets], list(linears)),
        rank_pattern=fused,
        alpha_pattern={name: as_int(done.scale * rank) for name, rank in fused.items()},
        modules_to_save=list(done.head) or None,
        use_rslora=by_root,
        fan_in_fan_out=all(isinstance(linears[t.name], Conv1D) for t in done.targets),
        task_type=task_type(base),
    )
    with torch.random.fork_rng(devices=[]):
        if isinstance(model, PeftModel):
            model.add_adapter(done.adapter_name, config)
            model.set_adapter(done.adapter_name)
            return model
        # Factors on the meta device for a model there.
        on_meta = any(p.is_meta for p in model.parameters())
        return get_peft_model(model, config, adapter_name=done.adapter_name, low_cpu_mem_usage=on_meta)


def short_names(names: list[str], linears: list[str]) -> list[str]:
    """Leaf names where they select exactly these layers (what other readers of adapters expect), else full names."""
    leaves = sorted({name.rpartition(".")[2] for name in names})
    selected = [name for name in linears if name.rpartition(".")[2] in leaves]
    return leaves if sorted(selected) == sorted(names) else names


def task_type(model: nn.Module) -> TaskType | None:
    """PEFT's task type by the name of the model's class; None where there is none."""
    name = type(model).__name__
    for ending, kind in (
        ("ForSequenceClassification", TaskType.SEQ_CLS),
        ("ForTokenClassification", TaskType.TOKEN_CLS),
        ("ForQuestionAnswering", TaskType.QUESTION_ANS),
        ("ForCausalLM", TaskType.CAUSAL_LM),
        ("LMHeadModel", TaskType.CAUSAL_LM),
    ):
        if name.endswith(ending):
            return kind
    return None


def as_int(number: float) -> Any:
    """An int where the number is one: what PEFT's config files hold."""
    return int(number) if math.isfinite(number) and number == int(number) else number
