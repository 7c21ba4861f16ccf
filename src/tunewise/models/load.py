"""A pretrained model from a folder, a hub id or an installed package, and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from tunewise.device import on_gpu
from tunewise.errors import ModelError, first_line, is_out_of_memory
from tunewise.hub import Snapshot, fetch
from tunewise.locate import digest, resolve, unpack
from tunewise.models.checkpoint_head import CheckpointHead, find_checkpoint_head
from tunewise.models.head import Head, head_modules, keep_in_fp32, prepare
from tunewise.models.quantization import dequantize_gguf, keep_weights_packed_once, quantization_options
from tunewise.spec import ModelSpec

_WEIGHTS = ("*.safetensors", "*.json", "*.txt", "*.model")
_POSITIONS = ("position_embeddings", "position_embedding", "embed_positions", "wpe")  # names of modules
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@lru_cache(maxsize=8)
def model_folder(spec: ModelSpec) -> Path:
    """The local folder of the model, unpacked or fetched if necessary. Raises `ModelError`."""
    path = _local_path(spec)
    if path is not None:
        folder = unpack(path) if path.suffix == ".zip" else dequantize_gguf(path) if path.suffix == ".gguf" else path
    elif spec.path.startswith((".", "/", "~")) or spec.path.count("/") > 1:
        raise ModelError(f"model {spec.path!r}: there is no such folder")
    else:
        folder = _from_hub(spec).folder
    if not (folder / "config.json").is_file():
        raise ModelError(f"model {spec.path!r}: {folder.name} holds no config.json, so it is no transformers model")
    return folder


def _local_path(spec: ModelSpec) -> Path | None:
    """The path of the model on this machine, `~` expanded; None where it may be a hub id."""
    path = resolve(spec.path)
    return path if path.exists() else None


def _from_hub(spec: ModelSpec) -> Snapshot:
    patterns = [*_WEIGHTS, *(["*.py"] if spec.trust_remote_code else [])]
    return fetch(
        spec.path,
        kind="model",
        revision=spec.revision,
        patterns=patterns,
        error=ModelError,
        instead="give a local folder",
    )


def weights_folder(spec: ModelSpec) -> Path:
    """The folder, if its weights can be read safely. Raises `ModelError` where they are a pickle: reading one may run
    code, and the digest of the model does not cover it."""
    folder = model_folder(spec)
    if any(folder.glob("*.safetensors")):
        return folder
    for file in sorted(path for pattern in _PICKLES for path in folder.glob(pattern)):
        raise ModelError(
            f"model {spec.path!r} has its weights as a pickle ({file.name}), which is not read; where you trust it, "
            "load it by transformers and save it with save_pretrained, which writes safetensors"
        )
    return folder


def pinned_model(spec: ModelSpec) -> ModelSpec:
    """The model with what its result depends on written out: the dtype, and the commit of a hub model."""
    model_folder(spec)  # raises for what is no model
    commit = None if _local_path(spec) is not None else _from_hub(spec).commit
    return spec.model_copy(update={"revision": commit or spec.revision, "dtype": dtype_name(spec, on_gpu=on_gpu())})


def torch_dtype(spec: ModelSpec) -> torch.dtype:
    """The dtype of the weights: the one that the spec names; for auto the checkpoint's own on a GPU, fp32 on a CPU."""
    dtype: torch.dtype = getattr(torch, dtype_name(spec, on_gpu=on_gpu()))
    return dtype


def dtype_name(spec: ModelSpec, *, on_gpu: bool) -> Literal["float32", "bfloat16", "float16"]:
    """The name of the dtype of the weights on a device."""
    if spec.dtype != "auto":
        return spec.dtype
    own = str(getattr(load_config(spec), "dtype", None) or "float32").removeprefix("torch.")
    return own if on_gpu and own in ("bfloat16", "float16") else "float32"  # type: ignore[return-value]


@lru_cache(maxsize=8)
def model_digest(spec: ModelSpec) -> str:
    """sha256 over the model's weights, config and tokenizer files."""
    folder = model_folder(spec)
    files = sorted({f for pattern in _WEIGHTS for f in folder.glob(pattern)})
    return digest(files, root=folder)


def load_config(spec: ModelSpec) -> PretrainedConfig:
    """The model's configuration. Raises `ModelError` where it can't be read."""
    folder = model_folder(spec)
    with refusal(spec, "its config.json can't be used"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=spec.trust_remote_code)


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token (the end-of-text token where it has none of its own)."""
    folder = model_folder(spec)
    with refusal(spec, "its tokenizer can't be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=spec.trust_remote_code)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"model {spec.path!r}: its tokenizer has neither a padding nor an end-of-text token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(spec: ModelSpec, head: Head, *, seed: int, pad_token_id: int | None = None) -> nn.Module:
    """The model with the head that a task needs, on the CPU, its weights as the spec says and a new head in fp32. The
    initial values of a new head depend on `seed` alone, so that every method starts from the same one. Raises
    `ModelError`."""
    folder = weights_folder(spec)
    own_head = checkpoint_head(spec, head)
    with quiet_loading(), refusal(spec, f"it can't be loaded as {head.description}"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = head.model_class.from_pretrained(
            folder,
            dtype=torch_dtype(spec),
            use_safetensors=True,
            trust_remote_code=spec.trust_remote_code,
            attn_implementation=spec.attn_implementation,
            ignore_mismatched_sizes=True,  # a checkpoint with a head for other classes
            **quantization_options(spec, head_modules(meta_model(spec, head)), torch_dtype(spec)),
            **head.config(),
        )
        keep_weights_packed_once(model)
        keep_in_fp32(model, head_modules(model))
        if own_head is not None:
            own_head.apply(model, seed)
    if pad_token_id is not None:
        model.config.pad_token_id = pad_token_id
    prepare(model, head)
    return model


def checkpoint_head(spec: ModelSpec, head: Head) -> CheckpointHead | None:
    """What becomes of the task head in a checkpoint; None where it has none, or where the head is a language model's
    and stays as it is. Raises `ModelError`."""
    if head.pretrained:
        return None
    model = meta_model(spec, head)
    needed = {f"{name}.{inner}" for name in head_modules(model) for inner in model.get_submodule(name).state_dict()}
    return find_checkpoint_head(load_config(spec), head) if needed and needed <= _tensor_names(spec) else None


@lru_cache(maxsize=8)
def _tensor_names(spec: ModelSpec) -> frozenset[str]:
    names: set[str] = set()
    for file in weights_folder(spec).glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            names.update(tensors.keys())
    return frozenset(names)


def meta_model(spec: ModelSpec, head: Head) -> nn.Module:
    """The same model without weights, on the meta device: for counting and checking before anything is loaded."""
    config = load_config(spec)
    for key, value in head.config().items():
        setattr(config, key, value)
    with refusal(spec, f"it can't be made {head.description}"), torch.device("meta"):
        model = head.model_class.from_config(config, trust_remote_code=spec.trust_remote_code)
    prepare(model, head)
    return model


def position_limit(model: nn.Module) -> int | None:
    """The longest sequence of tokens: the least of what the configuration says and what the learned position embeddings
    hold, without the rows that some architectures leave out (RoBERTa's up to its padding, OPT's and BART's first two).
    None without a limit."""
    stated = getattr(model.config, "max_position_embeddings", None)
    limits = [stated] if isinstance(stated, int) and stated > 0 else []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)  # I-BERT's table is no nn.Embedding
        if name.rpartition(".")[2] in _POSITIONS and isinstance(weight, Tensor) and weight.dim() == 2:
            padding = getattr(module, "padding_idx", None)
            unused = 0 if padding is None else padding + 1
            limits.append(getattr(module, "num_embeddings", len(weight)) - getattr(module, "offset", unused))
    return min(limits, default=None)


@contextmanager
def refusal(spec: ModelSpec, fault: str) -> Iterator[None]:
    """Errors of transformers within the block become a `ModelError`: the fault and the first line of the reason."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"model {spec.path!r}: {fault} ({first_line(error)})") from None


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bar, and no warning that a new head is newly initialised."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
