"""Run in a process of its own: `python fresh_process.py CASES.json RESULTS.json`.

First what stock PEFT makes of saved adapters, while tunewise is not imported; then what tunewise builds from the same
specs, as digests.
"""

from __future__ import annotations

import hashlib
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

models = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("models.py"))))


def stock_logits(kind: str, folder: str) -> list[Any]:
    from peft import PeftModel

    return models.logits(PeftModel.from_pretrained(models.make(kind), folder), models.batch(kind)).tolist()


def digests(kind: str, name: str, targets: Any) -> list[str]:
    """sha256 of what the adapter saves: as attached, after two steps, and after a restart where there is a chain."""
    import tunewise

    toy = runpy.run_path(str(Path(__file__).with_name("toy_method.py")))["ROW"]
    method = toy if name == toy.name else tunewise.CATALOG[name]
    options = {"batches": [models.batch(kind, seed=7)]} if method.start == "gradient" else {}
    model = tunewise.attach(models.make(kind), method, rank=4, targets=targets, seed=11, **options)
    found = [_digest(model)]
    models.train(model, models.batch(kind), steps=2)
    found.append(_digest(model))
    if method.chain is not None:
        tunewise.restart(model)
        found.append(_digest(model))
    return found


def _digest(model: Any) -> str:
    state, digest = model.state_dict(), hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode() + state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()


def main(cases: Path, results: Path) -> None:
    torch.set_num_threads(1)
    asked = json.loads(cases.read_text())
    found: dict[str, Any] = {"logits": {key: stock_logits(*case) for key, case in asked["stock"].items()}}
    found["tunewise imported by stock loading"] = "tunewise" in sys.modules
    found["digests"] = {key: digests(*case) for key, case in asked["built"].items()}
    results.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
