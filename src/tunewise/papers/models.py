"""The ten models of the paper: hub ids, and configurations without weights for counting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunewise.errors import SpecError, suggest_nearest

DATA = Path(__file__).parent / "data"

Restarts = Literal["epochs between restarts", "restarts in all"]


@dataclass(frozen=True, slots=True)
class PaperModel:
    """One model: its key here, its name in the paper's tables, its hub id.

    `restarts` is the meaning of Table 7's "chain reset frequency", which differs between the paper's two code bases.
    """

    key: str
    printed: str
    hub: str
    restarts: Restarts

    @property
    def config(self) -> Path:
        return DATA / "configs" / self.key


_EVERY: Restarts = "epochs between restarts"
_IN_ALL: Restarts = "restarts in all"
_ROWS = [
    PaperModel("roberta-base", "RoBERTa-Base", "FacebookAI/roberta-base", _EVERY),
    PaperModel("roberta-large", "RoBERTa-Large", "FacebookAI/roberta-large", _EVERY),
    PaperModel("deberta-v2-xxl", "DeBERTa v2 XXL", "microsoft/deberta-v2-xxlarge", _IN_ALL),
    PaperModel("deberta-v3-base", "DeBERTa v3 Base", "microsoft/deberta-v3-base", _IN_ALL),
    PaperModel("gpt2", "GPT2-Small", "openai-community/gpt2", _EVERY),
    PaperModel("vit-tiny", "ViT-Tiny", "WinKawaks/vit-tiny-patch16-224", _EVERY),
    PaperModel("vit-base", "ViT-Base", "google/vit-base-patch16-224", _EVERY),
    PaperModel("deepseek-coder", "DeepseekCoder", "deepseek-ai/deepseek-coder-1.3b-base", _IN_ALL),
    PaperModel("tinyllama", "TinyLlama", "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", _IN_ALL),
    PaperModel("llama3-8b", "Llama3-8B", "meta-llama/Meta-Llama-3-8B", _IN_ALL),
]
MODELS: dict[str, PaperModel] = {row.key: row for row in _ROWS}


def get_model(key: str) -> PaperModel:
    """Raises `SpecError` for an unknown key."""
    if key not in MODELS:
        raise SpecError(f"the paper has no model {key!r}{suggest_nearest(key, MODELS)}")
    return MODELS[key]
