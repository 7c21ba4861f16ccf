"""The task head: everything outside the backbone that is not a language-model head.

RoBERTa's `classifier` (dense and projection), DeBERTa's `pooler` and `classifier`, Llama's `score`. BERT's pooler is
inside its backbone and stays frozen with it. A language-model head belongs to the pretrained model: frozen too.
"""

from __future__ import annotations

from typing import Any


def head_modules(model: Any) -> list[str]:
    """Names of the direct children of `model` that make up its task head; empty where it has none."""
    prefix = getattr(model, "base_model_prefix", "")
    if not prefix or not hasattr(model, prefix):
        return []
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [
        name
        for name, child in model.named_children()
        if name != prefix
        and any(True for _ in child.parameters())
        and (output is None or all(module is not output for module in child.modules()))
    ]
