"""What an adapter folder holds beside the updates of weights: retrained modules and trained tokens."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.utils import PeftType

from tunewise.measures.base import Values
from tunewise.methods.files import CHANGED, CONFIG, WEIGHTS, read_sidecar, read_tensors

_TOKENS = "trainable_tokens_delta"


class TrainedTokens(Values):
    """Rows of an embedding."""

    tokens: list[int]
    parameters: int


class Retrained(Values):
    """Modules that are saved as a whole (the task head, PEFT's `modules_to_save`), and trained rows of embeddings."""

    modules: dict[str, int]
    """Numbers of parameters by name."""
    tokens: dict[str, TrainedTokens]
    """By the embedding's name."""

    def describe(self) -> list[str]:
        """In words, a line for the modules and one for each embedding; empty where there is nothing."""
        parts = [f"{name} ({count:,} parameters)" for name, count in self.modules.items()]
        lines = [f"Retrained as a whole: {', '.join(parts)}."] if parts else []
        for name, trained in self.tokens.items():
            shown = ", ".join(map(str, trained.tokens[:8])) + ", ..." * (len(trained.tokens) > 8)
            count = f"{len(trained.tokens):,} tokens of {name} ({trained.parameters:,} parameters)"
            lines.append(f"Trained: {count}: {shown}.")
        return lines


def retrained_by(folder: Path) -> Retrained:
    """Raises `StoreError` for a damaged file."""
    if (folder / CHANGED).exists():
        head = _count(read_tensors(folder / CHANGED), read_sidecar(folder)["head"], only=True)
        return Retrained(modules=head, tokens={})
    if not (folder / WEIGHTS).exists():
        return Retrained(modules={}, tokens={})
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(PeftType(config["peft_type"]), "lora_")
    tensors = {
        key.removeprefix("base_model.model."): tensor
        for key, tensor in read_tensors(folder / WEIGHTS).items()
        if key.startswith("base_model.model.")
    }
    whole = {key: tensor for key, tensor in tensors.items() if prefix not in key and _TOKENS not in key}
    tokens = {}
    for key, tensor in tensors.items():
        if _TOKENS in key:
            name = key.partition(f".{_TOKENS}")[0].removesuffix(".token_adapter")
            tokens[name] = TrainedTokens(tokens=_indices(config, name), parameters=tensor.numel())
    return Retrained(modules=_count(whole, config.get("modules_to_save") or []), tokens=tokens)


def _count(tensors: dict[str, Any], modules: list[str], only: bool = False) -> dict[str, int]:
    """Parameters by module: by those of `modules` that a tensor is in; else, unless `only` these count, by its own."""
    counts: Counter[str] = Counter()
    for key, tensor in tensors.items():
        paths = (re.match(rf"(.*?\.)?{re.escape(module)}(?=\.)", key) for module in modules)
        name = next((path[0] for path in paths if path), None)
        if name is not None or not only:
            counts[name or key.rpartition(".")[0]] += tensor.numel()
    return dict(counts)


def _indices(config: dict[str, Any], embedding: str) -> list[int]:
    given = config.get("trainable_token_indices") or config.get("token_indices") or []
    if isinstance(given, dict):
        given = next((tokens for name, tokens in given.items() if f".{embedding}".endswith(f".{name}")), [])
    return [int(token) for token in given]
