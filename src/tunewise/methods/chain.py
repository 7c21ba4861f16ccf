"""Chains: one adapter after another on the same layers, each merged into the function before the next begins.

At a restart the function does not change, the new link starts at B = 0, the optimizer forgets the adapter's
tensors (not the head's), and the learning-rate schedule continues.
"""

from __future__ import annotations

import bisect
import math
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunewise.catalog import Chain
from tunewise.errors import SpecError, StoreError
from tunewise.methods.adapters.base import Adapter, layer_adapters
from tunewise.methods.attachment import attachment

CHECKPOINT_COLUMNS = "columns.safetensors"
"""PaCA's trained columns as they are: the saved adapter holds W[:, cols] - W0[:, cols], and adding W0 again rounds."""


def restart(model: nn.Module, optimizer: Any = None, adapter_name: str | None = None) -> int:
    """Begin the next link of a chain on every adapted layer.

    Args:
        model: a model with a chain method (c3la, r-c3la, c-paca, cola, rac), also inside DistributedDataParallel or
            `torch.compile`.
        optimizer: a torch optimizer, or accelerate's wrapper of one; it forgets its state of the adapter's tensors.
        adapter_name: PEFT's name of the adapter; the active one unless given.

    Returns:
        The number of the link that begins, from 0.

    Raises:
        SpecError: the method has no chain, the adapter is merged, or FSDP2 shards the weights.

    Example:
        >>> import torch, tunewise
        >>> model = tunewise.attach(torch.nn.Sequential(torch.nn.Linear(8, 4)), "c3la", rank=2, targets=["0"])
        >>> optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        >>> restarts = tunewise.attachment(model).method.chain.restarts(total_steps=8)
        >>> for step in range(1, 9):
        ...     loss = model(torch.randn(3, 8)).square().mean()
        ...     loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     if step in restarts:
        ...         _ = tunewise.restart(model, optimizer)
    """
    adapters = _chained(model, adapter_name)
    if any(adapter.layer.merged for adapter in adapters):
        raise SpecError("the adapter is merged; call unmerge_adapter() before the next link")
    if any(isinstance(adapter.b, DTensor) for adapter in adapters):
        raise SpecError("a chain can't restart on weights that FSDP2 shards; train with DDP, or a method without links")
    for adapter in adapters:
        adapter.restart()
    if optimizer is not None:
        inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        for adapter in adapters:
            for parameter in adapter.trained:
                inner.state.pop(parameter, None)
                parameter.grad = None
    return adapters[0].link


def current_link(model: nn.Module, adapter_name: str | None = None) -> int:
    """Number of the active link, from 0. Raises `SpecError` where the model's method has no chain."""
    return _chained(model, adapter_name)[0].link


def _chained(model: nn.Module, adapter_name: str | None) -> list[Adapter]:
    plain = _unwrapped(model)
    done = attachment(plain, adapter_name)
    if done.method.chain is None:
        raise SpecError(f"method {done.method.name!r} has no chain to restart; use c3la, r-c3la, c-paca, cola or rac")
    return layer_adapters(plain, done.adapter_name)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile's wrapper."""
    return extract_model_from_parallel(model, keep_torch_compile=False)


def _steps_per_epoch(args: TrainingArguments, loader: Any) -> int | None:
    """Optimizer steps in one pass over the data, as the Trainer counts them; None where the length is not known."""
    try:
        batches = len(loader)
    except TypeError:
        return None
    return max(math.ceil(batches / args.gradient_accumulation_steps), 1)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _write_columns(model: nn.Module, checkpoint: Path, *, here: bool = True) -> None:
    """Put the trained columns beside the adapter in a checkpoint, on the process that writes (`here`)."""
    columns = _trained_columns(model)
    if columns and here:
        save_file({name: b.detach().cpu().contiguous() for name, b in columns.items()}, checkpoint / CHECKPOINT_COLUMNS)


@torch.no_grad()
def _read_columns(model: nn.Module, checkpoint: Path) -> None:
    """Read them from the checkpoint that has just been loaded."""
    file = checkpoint / CHECKPOINT_COLUMNS
    if file.exists():
        saved = load_file(file)
        for name, b in _trained_columns(model).items():
            b.copy_(saved[name])


def _trained_columns(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{adapter.name}:{adapter.target.name}": adapter.exact_weights
        for adapter in layer_adapters(model)
        if adapter.exact_weights is not None
    }


class ChainCallback(TrainerCallback):
    """Restarts a chain on schedule in any `transformers.Trainer`, TRL's `SFTTrainer` included.

    It acts at the end of a step, before the Trainer writes that step's checkpoint, so a checkpoint on the boundary
    already holds the new link. For PaCA it keeps the columns themselves in the checkpoints, so that a resumed run
    equals the uninterrupted one to the last bit. Methods without a chain need it for that alone.

    Args:
        chain: another schedule than the method's own.

    Raises:
        StoreError: when training begins from a checkpoint that was trained on another schedule.

    Example:
        >>> import tunewise
        >>> callback = tunewise.ChainCallback(tunewise.Chain(links=2))  # Trainer(..., callbacks=[callback])
        >>> callback.chain
        Chain(links=2, every=None, unit='epoch')
    """

    def __init__(self, chain: Chain | None = None) -> None:
        self.chain = chain
        self.restarts: list[int] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model = _unwrapped(kwargs["model"])
        if state.global_step:
            _read_columns(model, _checkpoint(args, state))
        chain = self.chain or attachment(model).method.chain
        if chain is None:
            self.restarts = []
            return
        self.restarts = chain.restarts(state.max_steps, _steps_per_epoch(args, kwargs.get("train_dataloader")))
        due, link = bisect.bisect_right(self.restarts, state.global_step), current_link(model)
        if due != link:
            raise StoreError(
                f"at step {state.global_step} of {state.max_steps} the chain should be in link {due + 1}, and the "
                f"adapter is in link {link + 1}; it was trained on another schedule, so start afresh"
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        _write_columns(_unwrapped(kwargs["model"]), _checkpoint(args, state), here=args.should_save)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step in self.restarts:
            restart(kwargs["model"], kwargs.get("optimizer"))
