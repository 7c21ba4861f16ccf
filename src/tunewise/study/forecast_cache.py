"""Forecasts made before, by a hash of everything that they rest on; read without importing torch."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from tunewise.locate import cache_folder, resolve, unpack
from tunewise.spec import ModelSpec, content_hash
from tunewise.store.files import write_atomically

_VERSIONS = ("tunewise", "torch", "transformers", "peft")
FORMAT = 3
PROCESS_BYTES = 500 * 2**20
"""About what Python, torch, transformers and peft take in a CPU process, whatever is trained."""
GLIBC_KEEPS = 1.8
"""The largest measured ratio of a process's memory above its libraries to that of its tensors, with glibc's default
settings: it keeps freed blocks below 32 MB."""


def beyond_tensors(device: str) -> str:
    """In words: what a machine needs beside the tensors that a forecast counts."""
    if device == "cuda":
        return "Beside them a GPU holds its context, and what its allocator can't use of its blocks."
    return (
        f"A process takes about {PROCESS_BYTES / 2**30:.1f} GB more for its libraries, and with glibc's default "
        f"settings it may keep freed blocks: up to {GLIBC_KEEPS:g} times the memory above was seen. "
        "MALLOC_MMAP_THRESHOLD_=1048576 in the environment prevents that, and costs some time."
    )


def key_of(model: ModelSpec, question: dict[str, Any]) -> str | None:
    """Hash of the model's configuration, the question and the libraries' versions; None where the configuration is
    not on this machine (a hub id that was never fetched)."""
    file = _config_file(model)
    if file is None:
        return None
    return content_hash(
        {
            "config": hashlib.sha256(file.read_bytes()).hexdigest(),
            "code": model.trust_remote_code,
            "question": question,
            "versions": {name: metadata.version(name) for name in _VERSIONS},
            "format": FORMAT,
        }
    )


def read(key: str) -> list[dict[str, Any]] | None:
    """What was kept under `key`; None where there is nothing, or nothing that can be read."""
    try:
        found = json.loads(_file(key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return (
        found if isinstance(found, list) and all(isinstance(row, dict) and "method" in row for row in found) else None
    )


def write(key: str, rows: list[dict[str, Any]]) -> None:
    """Keep `rows`. A cache that can't be written is no fault: the next call takes longer."""
    try:
        write_atomically(_file(key), json.dumps(rows) + "\n")
    except OSError:
        return


def _file(key: str) -> Path:
    return cache_folder() / "plans" / f"{key}.json"


def _config_file(model: ModelSpec) -> Path | None:
    if model.path.startswith("package:") or Path(model.path).exists():
        path = resolve(model.path)
        file = (unpack(path) if path.suffix == ".zip" else path) / "config.json"
        return file if file.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    if model.path.count("/") > 1 or model.path.startswith((".", "/", "~")):
        return None
    found = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
    return Path(found) if isinstance(found, str) else None
