"""The ten models. Weights come from the hub id or from a folder that is named instead."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunewise.errors import SpecError, suggest_nearest

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True)
class PaperModel:
    """One model: its key here, its name in the paper's tables, its hub id.

    `chains` says what Table 7's "chain reset frequency" counts, which differs between the paper's two code bases:
    epochs from one restart to the next, or the restarts of the whole run.
    """

    key: str
    printed: str
    hub: str
    chains: Literal["epochs between restarts", "restarts in all"]

    @property
    def config(self) -> Path:
        """A folder with the model's configuration and no weights: for counting."""
        return DATA / "configs" / self.key


_ROWS = [
    PaperModel("roberta-base", "RoBERTa-Base", "FacebookAI/roberta-base", "epochs between restarts"),
    PaperModel("roberta-large", "RoBERTa-Large", "FacebookAI/roberta-large", "epochs between restarts"),
    PaperModel("deberta-v2-xxl", "DeBERTa v2 XXL", "microsoft/deberta-v2-xxlarge", "restarts in all"),
    PaperModel("deberta-v3-base", "DeBERTa v3 Base", "microsoft/deberta-v3-base", "restarts in all"),
    PaperModel("gpt2", "GPT2-Small", "openai-community/gpt2", "epochs between restarts"),
    PaperModel("vit-tiny", "ViT-Tiny", "WinKawaks/vit-tiny-patch16-224", "epochs between restarts"),
    PaperModel("vit-base", "ViT-Base", "google/vit-base-patch16-224", "epochs between restarts"),
    PaperModel("deepseek-coder", "DeepseekCoder", "deepseek-ai/deepseek-coder-1.3b-base", "restarts in all"),
    PaperModel("tinyllama", "TinyLlama", "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", "restarts in all"),
    PaperModel("llama3-8b", "Llama3-8B", "meta-llama/Meta-Llama-3-8B", "restarts in all"),
]

MODELS: dict[str, PaperModel] = {row.key: row for row in _ROWS}


def get_model(key: str) -> PaperModel:
    """Raises `SpecError` for a name that is none of the ten."""
    if key not in MODELS:
        raise SpecError(f"the paper has no model {key!r}{suggest_nearest(key, MODELS)}")
    return MODELS[key]
