"""tunewise: which fine-tuning method, at which rank, for my model, my data, my budget? Answered with evidence.

The public face. Names are imported when they are first used, so `import tunewise` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "attach": "tunewise.methods.attach",
    "attachment": "tunewise.methods.attachment",
    "trainable_parameters": "tunewise.methods.attachment",
    "delta": "tunewise.methods.delta",
    "Method": "tunewise.catalog",
    "Chain": "tunewise.catalog",
    "OptimizerRule": "tunewise.catalog",
    "CATALOG": "tunewise.catalog",
    "ChainCallback": "tunewise.methods.chain",
    "restart": "tunewise.methods.chain",
    "refold": "tunewise.methods.fold_updates",
    "save": "tunewise.methods.saving",
    "load": "tunewise.methods.loading",
    "optimizer": "tunewise.training.optimizers",
    "compare": "tunewise.study.compare",
    "sweep": "tunewise.study.sweep",
    "export": "tunewise.exporting",
    "inspect": "tunewise.inspecting",
    "predict": "tunewise.predicting",
    "StudySpec": "tunewise.spec",
    "RunSpec": "tunewise.spec",
    "TunewiseError": "tunewise.errors",
}

__all__ = [*_WHERE]

if TYPE_CHECKING:
    from tunewise.catalog import CATALOG, Chain, Method, OptimizerRule
    from tunewise.errors import TunewiseError
    from tunewise.exporting import export
    from tunewise.inspecting import inspect
    from tunewise.methods.attach import attach
    from tunewise.methods.attachment import attachment, trainable_parameters
    from tunewise.methods.chain import ChainCallback, restart
    from tunewise.methods.delta import delta
    from tunewise.methods.fold_updates import refold
    from tunewise.methods.loading import load
    from tunewise.methods.saving import save
    from tunewise.predicting import predict
    from tunewise.spec import RunSpec, StudySpec
    from tunewise.study.compare import compare
    from tunewise.study.sweep import sweep
    from tunewise.training.optimizers import optimizer


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'tunewise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
