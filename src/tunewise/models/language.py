"""A checkpoint's own language-model head, where it has one: what fine-tuning may make it forget."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from tunewise.errors import is_out_of_memory
from tunewise.models.load import load_config, weights_folder
from tunewise.spec import ModelSpec

LanguageKind = Literal["masked", "causal"]


@lru_cache(maxsize=1)
def language_model(spec: ModelSpec) -> tuple[LanguageKind, nn.Module] | None:
    """The checkpoint with its pretrained head, fp32 and frozen, and which kind it is; None where it holds no such
    head: one that transformers would have to make up is no pretrained one.

    The last model asked for is kept; the caller leaves it as it was.
    """
    kind = load_config(spec).model_type
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:  # a BERT can be read as a causal model, but was not trained so
            family: Any = AutoModelForMaskedLM
            name: LanguageKind = "masked"
        elif kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            family, name = AutoModelForCausalLM, "causal"
        else:
            return None
        model, report = family.from_pretrained(
            weights_folder(spec),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=spec.trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        return None
    finally:
        transformers_logging.set_verbosity(level)
    if any(not key.startswith(f"{model.base_model_prefix}.") for key in report["missing_keys"]):
        return None
    return name, model.eval().requires_grad_(False)


def has_causal_head(config: Any) -> bool:
    """Whether a transformers configuration is one of a checkpoint with the head of a causal language model."""
    names = " ".join(getattr(config, "architectures", None) or [])
    return "ForCausalLM" in names or "LMHead" in names
