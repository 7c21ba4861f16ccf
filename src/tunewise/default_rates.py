"""The learning rate of a method where none was given or searched for, and the middle of a search.

Encoders: fitted on TREC, BBC News and MRPC with MiniLM (rank 8, scale 2, 400 examples, 4 epochs);
docs/evidence/tuned_rates.csv has the tuned rates. Language models: the nearest published rate for AdamW, from the
authors' code, PEFT's examples and its MetaMathQA board; they are 10 to 75 times lower, because such runs start
nearer to their goal and are longer.
"""

from __future__ import annotations

from typing import Literal

from tunewise.catalog import CATALOG, Method

Regime = Literal["encoder", "language"]
"""Of a task (`Task.rate_regime`): a new head on an encoder, or a language model that goes on with what it can do."""

_ENCODER_BY_TRAINED = {"all": 2e-4, "head": 1e-1, "AB": 1e-2, "B": 1.5e-2, "A": 1e-2, "columns": 3e-2}
_ENCODER = {"lora+": 1.5e-3, "rslora": 4e-3, "lora-one": 5e-3, "cla": 2e-2}

_LANGUAGE_BY_TRAINED = {"all": 1e-5, "head": 1e-3, "AB": 2e-4, "B": 5e-4, "A": 5e-4, "columns": 4e-4}
_LANGUAGE = {"lora+": 5e-5, "rslora": 1e-4}

# Methods of PEFT, for language models.
_PEFT = {
    "lora": 2e-4,
    "dora": 2e-4,
    "pissa": 2e-5,
    "olora": 6e-5,
    "orthogonal": 2e-4,
    "adalora": 1e-3,
    "boft": 1e-4,
    "c3a": 1e-1,
    "delora": 1e-3,
    "fourierft": 6e-2,
    "gralora": 2e-4,
    "hira": 1e-3,
    "hra": 1e-3,
    "ia3": 5e-3,
    "ln_tuning": 1e-3,
    "loha": 3e-4,
    "lokr": 3e-3,
    "miss": 1e-4,
    "oft": 1e-4,
    "randlora": 1e-4,
    "road": 1e-3,
    "shira": 3e-4,
    "vblora": 1e-3,
    "vera": 5e-3,
    "waveft": 3e-4,
}
# No rates of these were fitted on encoders. The smallest ratio of the fitted ones to the published ones is about 10.
_PEFT_ENCODER_RATIO, _PEFT_ENCODER_LIMIT = 10, 1e-1


def default_rate(method: Method, regime: Regime) -> float:
    """The rate for a method in a regime."""
    for_language = regime == "language"
    if method.passed_through:
        rate = _PEFT[method.name.removeprefix("peft:")]
        return rate if for_language else min(_PEFT_ENCODER_RATIO * rate, _PEFT_ENCODER_LIMIT)
    by_name, by_trained = (_LANGUAGE, _LANGUAGE_BY_TRAINED) if for_language else (_ENCODER, _ENCODER_BY_TRAINED)
    if method == CATALOG.get(method.name) and method.name in by_name:
        return by_name[method.name]
    return by_trained[method.trained]
