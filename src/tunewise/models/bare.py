"""A checkpoint for its weights alone: whatever it is a model for, in the precision that it is stored in."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PretrainedConfig

from tunewise.errors import ModelError, StoreError
from tunewise.models.load import load_config, quiet_loading, refusal, weights_folder
from tunewise.spec import ModelSpec

_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "IMAGE_CLS": "AutoModelForImageClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "MASKED_LM": "AutoModelForMaskedLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""Classes of transformers by PEFT's task type, in the order in which they are tried."""


def load_bare(spec: ModelSpec, layers: Collection[str], task_type: str | None = None) -> nn.Module:
    """The model with modules named `layers`, as the class of transformers that has them (`bert.encoder...` in a
    classifier, `encoder...` in the encoder itself), in the checkpoint's precision, frozen. Raises `ModelError`."""
    config = load_config(spec)
    with quiet_loading(), refusal(spec, "it can't be loaded"):
        for model_class in _classes(config, task_type):
            try:
                with torch.device("meta"):
                    skeleton = _from_config(model_class, config, spec)
            except (ValueError, KeyError, AttributeError):  # this architecture has no such class
                continue
            if set(layers) <= {name for name, _ in skeleton.named_modules()}:
                model: nn.Module = model_class.from_pretrained(
                    weights_folder(spec),
                    dtype="auto",
                    use_safetensors=True,
                    trust_remote_code=spec.trust_remote_code,
                    ignore_mismatched_sizes=True,
                )
                return model.eval().requires_grad_(False)
    example = next(iter(layers), "")
    raise ModelError(f"model {spec.path!r} has no layer {example!r} in any form; this is another base model")


def base_of_adapter(folder: Path) -> tuple[str | None, str | None]:
    """The name of the base model and the task type in PEFT's `adapter_config.json`; None where it has none."""
    try:
        content: dict[str, str | None] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None, None
    return content.get("base_model_name_or_path") or None, content.get("task_type") or None


def layers_of_adapter(folder: Path) -> list[str]:
    """Names of the modules that an adapter folder changes, heads and norms left out. Raises `StoreError`."""
    layers: dict[str, None] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="pt") as tensors:
                keys = list(tensors.keys())
        except (SafetensorError, OSError) as error:
            raise StoreError(f"{file} can't be read: {error}") from None
        for key in keys:
            name = key.removeprefix("base_model.model.")
            adapter = re.match(r"(.+?)\.(lora_|columns|update)", name)
            if adapter:
                layers[adapter[1]] = None
            elif file.name == "changed.safetensors" and name.count(".") > 2:
                layers[name.rpartition(".")[0]] = None
    return list(layers)


def _classes(config: PretrainedConfig, task_type: str | None) -> list[Any]:
    names = [_CLASSES.get(task_type or "", ""), *(getattr(config, "architectures", None) or ()), *_CLASSES.values()]
    return [getattr(transformers, name) for name in dict.fromkeys(names) if hasattr(transformers, name)]


def _from_config(model_class: Any, config: PretrainedConfig, spec: ModelSpec) -> nn.Module:
    if model_class.__name__.startswith("Auto"):
        model: nn.Module = model_class.from_config(config, trust_remote_code=spec.trust_remote_code)
        return model
    built: nn.Module = model_class(config)
    return built
