"""A pretrained model from a folder, a hub id or an installed package, and its tokenizer."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from tunewise.errors import ModelError, is_out_of_memory
from tunewise.hub import Snapshot, fetch
from tunewise.locate import digest, resolve, unpack
from tunewise.models.head import Head, prepare
from tunewise.spec import ModelSpec

_WEIGHTS = ("*.safetensors", "*.json", "*.txt", "*.model")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@lru_cache(maxsize=8)
def model_folder(spec: ModelSpec, flag: str = "--model") -> Path:
    """The local folder of the model, unpacked or fetched where need be. Raises `ModelError`, which names the `flag` by
    which another model is given."""
    if spec.path.startswith("package:") or Path(spec.path).exists():
        path = resolve(spec.path)
        folder = unpack(path) if path.suffix == ".zip" else path
    elif spec.path.startswith((".", "/", "~")) or spec.path.count("/") > 1:
        raise ModelError(f"model {spec.path!r}: there is no such folder")
    else:
        folder = _from_hub(spec, flag).folder
    if not (folder / "config.json").is_file():
        raise ModelError(f"model {spec.path!r}: {folder.name} holds no config.json, so it is no transformers model")
    return folder


def _from_hub(spec: ModelSpec, flag: str = "--model") -> Snapshot:
    patterns = [*_WEIGHTS, *(["*.py"] if spec.trust_remote_code else [])]
    return fetch(
        spec.path,
        kind="model",
        revision=spec.revision,
        patterns=patterns,
        error=ModelError,
        instead=f"give a local one ({flag})",
    )


def weights_folder(spec: ModelSpec) -> Path:
    """The same, for one who reads the weights. Raises `ModelError` too where they are a pickle alone: reading one may
    run code, and the model's digest does not cover it."""
    folder = model_folder(spec)
    if any(folder.glob("*.safetensors")):
        return folder
    for file in sorted(one for pattern in _PICKLES for one in folder.glob(pattern)):
        raise ModelError(
            f"model {spec.path!r} has its weights as a pickle ({file.name}), which is not read; where you trust it, "
            "load it by transformers and save it with save_pretrained, which writes safetensors"
        )
    return folder


def pinned_model(spec: ModelSpec) -> ModelSpec:
    """The model with the commit that a hub's files are of as its revision; a local one as it is."""
    if spec.path.startswith("package:") or Path(spec.path).exists():
        return spec
    model_folder(spec)  # raises for what is no hub id
    return spec.model_copy(update={"revision": _from_hub(spec).commit or spec.revision})


@lru_cache(maxsize=8)
def model_digest(spec: ModelSpec) -> str:
    """sha256 over the model's weights, config and tokenizer files."""
    folder = model_folder(spec)
    files = sorted({f for pattern in _WEIGHTS for f in folder.glob(pattern)})
    return digest(files, root=folder)


def load_config(spec: ModelSpec) -> Any:
    """The model's configuration. Raises `ModelError` where it can't be read."""
    folder = model_folder(spec)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=spec.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model {spec.path!r}: its config.json can't be used ({_first_line(error)})") from None


def load_tokenizer(spec: ModelSpec) -> Any:
    """The model's tokenizer, with a padding token (the end-of-text token where it has none of its own)."""
    folder = model_folder(spec)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=spec.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model {spec.path!r}: its tokenizer can't be loaded ({_first_line(error)})") from None
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"model {spec.path!r}: its tokenizer has neither a padding nor an end-of-text token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(spec: ModelSpec, head: Head, *, seed: int, pad_token_id: int | None = None) -> nn.Module:
    """The model with the head that a task needs, fp32, on the CPU.

    A new head's initial values depend on `seed` alone: every method at one seed starts from the same one. Raises
    `ModelError` where the model can't be loaded so.
    """
    folder = weights_folder(spec)
    transformers_logging.disable_progress_bar()
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # "some weights are newly initialised" is what a new head means
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = head.model_class.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=spec.trust_remote_code,
                ignore_mismatched_sizes=True,  # a checkpoint with a head for other classes
                **head.config(),
            )
    except (OSError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"model {spec.path!r} can't be loaded as {head.description}: {_first_line(error)}") from None
    finally:
        transformers_logging.set_verbosity(level)
    if pad_token_id is not None:
        model.config.pad_token_id = pad_token_id
    prepare(model, head)
    return model


def meta_model(spec: ModelSpec, head: Head) -> nn.Module:
    """The same model without weights, on the meta device: for counting and checking before anything is loaded."""
    config = load_config(spec)
    for key, value in head.config().items():
        setattr(config, key, value)
    try:
        with torch.device("meta"):
            model = head.model_class.from_config(config, trust_remote_code=spec.trust_remote_code)
    except ValueError as error:
        raise ModelError(f"model {spec.path!r} can't be made {head.description}: {_first_line(error)}") from None
    prepare(model, head)
    return model


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
