"""A model that several processes train together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tiny import save_tiny_model


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without dropout, whose draws would differ with the shape of a batch; and with weights so large
    that gradients stand well above rounding, which Adam would else make into steps of full length."""
    folder = save_tiny_model(tmp_path_factory.mktemp("calm") / "model")
    weights = load_file(folder / "model.safetensors")
    save_file({key: 8 * w if w.dim() == 2 else w for key, w in weights.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
