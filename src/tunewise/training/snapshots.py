"""Snapshots: what was trained after some optimizer step, in a file, and how it goes back into a model.

trajectory/step-000123.safetensors    the trained tensors after 123 optimizer steps, and the links finished until then
trajectory/trajectory.json            which of these files count, with their checksums; written after each of them

A snapshot holds no base weights, so it is about as large as the adapter.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tunewise.errors import StoreError, is_out_of_memory
from tunewise.methods.adapters.base import Adapter, layer_adapters
from tunewise.methods.attachment import attachment
from tunewise.methods.fold_updates import refold
from tunewise.store.files import replacing, sha256, write_atomically

INDEX = "trajectory.json"
FORMAT = 1


@dataclass(frozen=True)
class Snapshot:
    """What was trained after `step` optimizer steps (0: before the first)."""

    step: int
    path: Path
    checksum: str

    @classmethod
    def write(cls, model: nn.Module, step: int, path: Path) -> Snapshot:
        """Write the trained state of a model, completely or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as scratch:
            save_file(collect_state(model), scratch, metadata={"made_by": describe_method(model)})
        return cls(step, path, sha256(path))

    def check(self) -> None:
        """Raises `StoreError` where the file is gone or not as it was written."""
        try:
            intact = sha256(self.path) == self.checksum
        except OSError as error:
            raise StoreError(f"{self.path} can't be read: {error}") from None
        if not intact:
            raise StoreError(
                f"{self.path} is not as it was written; remove it and train that run again with --trajectory"
            )

    def tensors(self, layer: str | None = None) -> dict[str, Tensor]:
        """The tensors, as `collect_state` made them; with `layer` only those of that layer are read."""
        with self._open() as file:
            return {key: file.get_tensor(key) for key in file.keys() if belongs_to(key, layer)}  # noqa: SIM118

    def rows(self, key: str, start: int, stop: int) -> Tensor:
        """Some rows of one tensor, without reading the rest."""
        with self._open() as file:
            piece: Tensor = file.get_slice(key)[start:stop]
            return piece

    def restore(self, model: nn.Module) -> None:
        """Load this state into a model with the same method on the same base model: the same function, bit for bit.
        Raises `StoreError` where the file is damaged, or the model is another one."""
        self.check()
        with self._open() as file:
            made_by = str((file.metadata() or {}).get("made_by", ""))
        tensors = self.tensors()
        if made_by != (here := describe_method(model)):
            raise StoreError(f"{self.path} is of {made_by or 'no method'}, and this model has {here or 'no method'}")
        names = {name for name, p in model.named_parameters() if p.requires_grad}
        if missing := sorted(names - {key.removeprefix("trained.") for key in tensors}):
            raise StoreError(f"{self.path} does not fit this model: it has no {missing[0]}")
        try:
            load_state(model, tensors)
        except StoreError as error:
            raise StoreError(f"{self.path} does not fit this model: {error}") from None

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with safe_open(self.path, "pt") as file:
                yield file
        except (OSError, SafetensorError) as error:
            if is_out_of_memory(error):
                raise
            raise StoreError(f"{self.path} can't be read: {error}") from None


def snapshots(folder: str | Path) -> list[Snapshot]:
    """The snapshots of a training, for looking at it later.

    Args:
        folder: The folder that `TrajectoryCallback` wrote to.

    Returns:
        The snapshots by step; empty where there are none. `snapshot.restore(model)` loads one into a model that
        carries the same method.

    Raises:
        StoreError: The list of snapshots can't be read.

    Example:
        >>> snapshots("no/such/folder")
        []
    """
    return sorted(read_index(Path(folder)).values(), key=lambda snapshot: snapshot.step)


def read_index(folder: Path) -> dict[str, Snapshot]:
    """The snapshots that count, by file name. Raises `StoreError` for a damaged list."""
    file = folder / INDEX
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {
            name: Snapshot(int(entry["step"]), folder / name, str(entry["sha256"]))
            for name, entry in content["snapshots"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{file} can't be read ({error}); remove {folder} and train that run again") from None


def write_index(folder: Path, kept: Mapping[str, Snapshot]) -> None:
    """Write which snapshots count."""
    files = {name: {"step": snapshot.step, "sha256": snapshot.checksum} for name, snapshot in sorted(kept.items())}
    write_atomically(folder / INDEX, json.dumps({"format": FORMAT, "snapshots": files}, indent=1) + "\n")


def describe_method(model: nn.Module) -> str:
    """What decides the frozen part of a method: `asym, rank 8, seed 0`; empty for a model without a method."""
    if not hasattr(model, "tunewise"):
        return ""
    done = attachment(model)
    return f"{done.method.name}, rank {done.rank}, seed {done.seed}"


@torch.no_grad()
def collect_state(model: nn.Module) -> dict[str, Tensor]:
    """The trained tensors of a model and what says where they act, on the CPU.

    `trained.NAME` for every trained parameter; for each adapter whose A is not trained `link.I.where.ADAPTER:LAYER`
    (columns, or A), and `link.I.b.ADAPTER:LAYER` for each finished link.
    """
    tensors: dict[str, Tensor] = {f"trained.{name}": p for name, p in model.named_parameters() if p.requires_grad}
    for adapter in layer_adapters(model):
        key = _key(adapter)
        for i, (where, b) in enumerate(adapter.finished):
            tensors[f"link.{i}.where.{key}"] = where
            tensors[f"link.{i}.b.{key}"] = b
        if adapter.stored_where is not None:
            tensors[f"link.{adapter.link}.where.{key}"] = adapter.stored_where
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def load_state(model: nn.Module, tensors: Mapping[str, Tensor], layer: str | None = None) -> None:
    """The inverse of `collect_state`, for a model with the same method; for one layer only, where it is named. Raises
    `StoreError` for a tensor that is not in the model, or has another shape there."""
    trained = {key.removeprefix("trained."): t for key, t in tensors.items() if key.startswith("trained.")}
    own = dict(model.named_parameters())
    adapters = {_key(a): a for a in layer_adapters(model) if layer is None or a.target.name == layer}
    unknown = [name for name, t in trained.items() if name not in own or own[name].shape != t.shape]
    unknown += [key for key in tensors if key.startswith("link.") and key.split(".", 3)[3] not in adapters]
    if unknown:
        raise StoreError(f"{unknown[0]} is not in the model, or has another shape there")
    for key, adapter in adapters.items():
        links: list[tuple[Tensor, Tensor]] = []
        while (b := tensors.get(f"link.{len(links)}.b.{key}")) is not None:
            links.append((tensors[f"link.{len(links)}.where.{key}"], b))
        adapter.take_links(links, tensors.get(f"link.{len(links)}.where.{key}"))
    for name, tensor in trained.items():
        own[name].copy_(tensor)
    refold(model)


def belongs_to(key: str, layer: str | None) -> bool:
    """Whether a tensor of a snapshot is of that layer; of any layer for None."""
    return layer is None or f".{layer}." in key or key.endswith(f":{layer}")


def _key(adapter: Adapter) -> str:
    return f"{adapter.name}:{adapter.target.name}"
