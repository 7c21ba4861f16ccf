"""A checkpoint's own language-model head, where it has one: what fine-tuning may make it forget."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PretrainedConfig
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from tunewise.errors import ModelError
from tunewise.models.load import load_config, quiet_loading, refusal, weights_folder
from tunewise.spec import ModelSpec

LanguageKind = Literal["masked", "causal"]


@lru_cache(maxsize=1)
def language_model(spec: ModelSpec) -> tuple[LanguageKind, nn.Module] | None:
    """The checkpoint with its pretrained head, fp32 and frozen, and the kind of the head; None where it has none. The
    last model is cached, so the caller must not change it."""
    kind = load_config(spec).model_type
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:  # a BERT can be read as a causal model, but was not trained as one
        model_class: type[_BaseAutoModelClass] = AutoModelForMaskedLM
        name: LanguageKind = "masked"
    elif kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        model_class, name = AutoModelForCausalLM, "causal"
    else:
        return None
    folder = weights_folder(spec)
    try:
        with quiet_loading(), refusal(spec, "it can't be loaded"):
            model, report = model_class.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=spec.trust_remote_code,
                output_loading_info=True,
            )
    except ModelError:
        return None
    if any(not key.startswith(f"{model.base_model_prefix}.") for key in report["missing_keys"]):
        return None
    return name, model.eval().requires_grad_(False)


def has_causal_head(config: PretrainedConfig) -> bool:
    """Whether a transformers configuration is one of a checkpoint with the head of a causal language model."""
    names = " ".join(getattr(config, "architectures", None) or [])
    return "ForCausalLM" in names or "LMHead" in names
