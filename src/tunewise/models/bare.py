"""A checkpoint for its weights alone: whatever it is a model for, in the precision that it is stored in."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging as transformers_logging

from tunewise.errors import ModelError, StoreError, is_out_of_memory
from tunewise.models.load import load_config, model_folder, weights_folder
from tunewise.spec import ModelSpec

_FAMILIES = (
    "AutoModelForSequenceClassification",
    "AutoModelForCausalLM",
    "AutoModelForImageClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMaskedLM",
    "AutoModelForSeq2SeqLM",
    "AutoModel",
)
_BY_TASK = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}


def load_bare(
    spec: ModelSpec, layers: Collection[str], task_type: str | None = None, *, flag: str = "--base"
) -> nn.Module:
    """The model in the form that has modules by the names `layers`, in the checkpoint's own precision, frozen.

    Names tell the form: an adapter of a classifier says `bert.encoder...`, one of the encoder itself `encoder...`.
    Raises `ModelError` where no form of the model has them, or it can't be loaded; `flag`: by which another is given.
    """
    model_folder(spec, flag)
    config = load_config(spec)
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a new head is of no interest here
    transformers_logging.disable_progress_bar()
    try:
        for family in _families(config, task_type):
            with torch.device("meta"):
                try:
                    skeleton = _from_config(family, config, spec)
                except (ValueError, KeyError, AttributeError):  # this architecture has no such form
                    continue
            known = {name for name, _ in skeleton.named_modules()}
            if all(name in known for name in layers):
                model: nn.Module = family.from_pretrained(
                    weights_folder(spec),
                    dtype="auto",
                    use_safetensors=True,
                    trust_remote_code=spec.trust_remote_code,
                    ignore_mismatched_sizes=True,
                )
                return model.eval().requires_grad_(False)
    except (OSError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"model {spec.path!r} can't be loaded: {str(error).splitlines()[0][:200]}") from None
    finally:
        transformers_logging.set_verbosity(level)
    example = next(iter(layers), "")
    raise ModelError(f"model {spec.path!r} has no layer {example!r} in any form; this is another base model")


def base_of_adapter(folder: Path) -> tuple[str | None, str | None]:
    """The base model's name and the task's type, as PEFT's `adapter_config.json` has them; None where it doesn't."""
    try:
        content: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None, None
    return content.get("base_model_name_or_path") or None, content.get("task_type") or None


def layers_of_adapter(folder: Path) -> list[str]:
    """Names of the modules that an adapter folder changes: as its tensors say, heads and norms left out. Raises
    `StoreError` where they can't be read."""
    found: dict[str, None] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="pt") as tensors:
                keys = list(tensors.keys())
        except (SafetensorError, OSError) as error:
            raise StoreError(f"{file} can't be read: {error}") from None
        for key in keys:
            plain = key.removeprefix("base_model.model.")
            for mark in (".lora_", ".columns", ".update"):
                head, middle, _ = plain.partition(mark)
                if middle:
                    found[head] = None
                    break
            else:
                if file.name == "changed.safetensors" and plain.count(".") > 2:
                    found[plain.rpartition(".")[0]] = None
    return list(found)


def _families(config: Any, task_type: str | None) -> Iterator[Any]:
    names = [_BY_TASK[task_type]] if task_type in _BY_TASK else []
    for name in dict.fromkeys([*names, *(getattr(config, "architectures", None) or ()), *_FAMILIES]):
        family = getattr(transformers, name, None)
        if family is not None:
            yield family


def _from_config(family: Any, config: Any, spec: ModelSpec) -> nn.Module:
    if family.__name__.startswith("Auto"):
        model: nn.Module = family.from_config(config, trust_remote_code=spec.trust_remote_code)
        return model
    built: nn.Module = family(config)
    return built
