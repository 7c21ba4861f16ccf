"""The path of a training run: what was trained, kept at evenly spaced optimizer steps.

trajectory/step-000123.safetensors    the trained tensors after 123 optimizer steps, and the links finished until then
trajectory/trajectory.json            which of these files count, with their checksums; written after each of them

A snapshot holds no base weights, so it is about as large as the adapter. In a `Trainer` (or TRL's `SFTTrainer`) of
one's own: `callbacks=[tunewise.ChainCallback(), tunewise.TrajectoryCallback("out/trajectory")]`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunewise.catalog import get_method
from tunewise.errors import StoreError, is_out_of_memory
from tunewise.methods.adapters.base import Adapter, layer_adapters
from tunewise.methods.attachment import attachment
from tunewise.methods.fold_updates import refold
from tunewise.store.files import sha256, write_atomically
from tunewise.store.names import TRAJECTORY
from tunewise.store.records import RunRecord
from tunewise.training.build import total_steps

INDEX = "trajectory.json"
FORMAT = 1
COUNT = 20


@dataclass(frozen=True)
class SnapshotOptions:
    """That runs are to keep a trajectory: `count` snapshots besides the start; with `full` also full fine-tuning."""

    count: int = COUNT
    full: bool = False

    def applies_to(self, method: str) -> bool:
        return self.full or get_method(method).trained != "all"


@dataclass(frozen=True)
class Snapshot:
    """What was trained after `step` optimizer steps (0: before the first)."""

    step: int
    path: Path
    checksum: str

    def check(self) -> None:
        """Raises `StoreError` where the file is not as it was written, or gone."""
        try:
            if sha256(self.path) != self.checksum:
                raise StoreError(
                    f"{self.path} is not as it was written; remove it and train that run again with --trajectory"
                )
        except OSError as error:
            raise StoreError(f"{self.path} can't be read: {error}") from None

    def tensors(self, layer: str | None = None) -> dict[str, Tensor]:
        """What the file holds: `trained.NAME` for every trained parameter, and for each adapter with a place of its
        own `link.I.where.ADAPTER:LAYER` (columns, or A) and, for a finished link, `link.I.b.ADAPTER:LAYER`.

        With `layer` only what belongs to that layer is read. Raises `StoreError` for a file that can't be read.
        """
        try:
            with safe_open(self.path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys() if belongs(key, layer)}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            if is_out_of_memory(error):
                raise
            raise StoreError(f"{self.path} can't be read: {error}") from None

    def rows(self, key: str, start: int, stop: int) -> Tensor:
        """Some rows of one tensor, without reading the rest. Raises `StoreError` for a file that can't be read."""
        try:
            with safe_open(self.path, "pt") as file:
                piece: Tensor = file.get_slice(key)[start:stop]
                return piece
        except (OSError, SafetensorError) as error:
            if is_out_of_memory(error):
                raise
            raise StoreError(f"{self.path} can't be read: {error}") from None

    def restore(self, model: nn.Module) -> None:
        """Put this moment's trained state into a model that carries the same method on the same base model (as
        `training.build.build_model` makes it): the same function, the same dW, bit for bit.

        Raises `StoreError` where the file is damaged, or the model is another one.
        """
        self.check()
        tensors = self.tensors()
        if self._made_by() != (mine := made_by(model)):
            raise StoreError(
                f"{self.path} is of {self._made_by() or 'another hand'}, and this model has {mine or 'no method'}"
            )
        names = {name for name, p in model.named_parameters() if p.requires_grad}
        if missing := sorted(names - {key.removeprefix("trained.") for key in tensors}):
            raise StoreError(f"{self.path} does not fit this model: it has no {missing[0]}")
        try:
            put_state(model, tensors)
        except StoreError as error:
            raise StoreError(f"{self.path} does not fit this model: {error}") from None

    def _made_by(self) -> str:
        with safe_open(self.path, "pt") as file:
            return str((file.metadata() or {}).get("made_by", ""))


def snapshots(folder: str | Path) -> list[Snapshot]:
    """The snapshots in a trajectory's folder, by step; empty where none were kept. Raises `StoreError` for a list
    that can't be read."""
    return sorted(_read_index(Path(folder)).values(), key=lambda snapshot: snapshot.step)


def kept_by(record: RunRecord, folder: Path) -> list[Snapshot]:
    """The snapshots of a finished run, from its start to its end; empty where it kept none, or not all of them."""
    found = snapshots(folder / TRAJECTORY)
    whole = (
        found and record.data and [found[0].step, found[-1].step] == [0, total_steps(record.spec, record.data.train)]
    )
    return found if whole else []


def lacks_snapshots(record: RunRecord, folder: Path, wanted: SnapshotOptions | None) -> bool:
    """Whether snapshots are wanted of a finished run that kept none."""
    if wanted is None or record.status != "done" or not wanted.applies_to(record.spec.method.name):
        return False
    return not kept_by(record, folder)


def no_trajectory(method: str) -> str:
    """What to do about a run that kept none."""
    flags = "--trajectory 20" if SnapshotOptions().applies_to(method) else "--trajectory 20 --trajectory-full"
    return f"kept no snapshots; add {flags} to train it once more with them (the result is the same)"


def moments(total: int, count: int) -> list[int]:
    """The optimizer steps after which a snapshot is kept: 0, and `count` evenly spaced ones that end with the last."""
    return sorted({round(total * i / count) for i in range(count + 1)})


def has_snapshots_until(folder: Path, count: int, total: int, until: int) -> bool:
    """Whether the trajectory of a training of `total` steps that keeps `count` snapshots has none missing up to step
    `until`."""
    try:
        steps = {known.step for known in snapshots(folder) if known.path.exists()}
    except StoreError:
        return False
    return all(step in steps for step in moments(total, count) if step <= until)


class TrajectoryCallback(TrainerCallback):
    """Keeps snapshots in `folder` while a `transformers.Trainer` trains; the training itself is not changed by a bit.

    Args:
        folder: where they go; what another training left there is removed.
        snapshots: how many, evenly spaced, the last step among them; the start is kept besides.
        full: also of full fine-tuning, where each snapshot is as large as the model; nothing is kept of it otherwise.

    After a resume the snapshots after the checkpoint's step are made anew. Chains need their `ChainCallback` before
    this one in the Trainer's list. Of several processes the first one writes, and it alone needs `folder`.
    """

    def __init__(self, folder: str | Path, snapshots: int = COUNT, *, full: bool = False) -> None:
        self.folder = Path(folder)
        self.count = snapshots
        self.full = full
        self._due: set[int] = set()
        self._kept: dict[str, Snapshot] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._due = set()
        model = extract_model_from_parallel(kwargs["model"])
        if not state.is_world_process_zero or not (self.full or trains_a_part(model)):
            return
        self._due = set(moments(state.max_steps, self.count))
        self._kept = self._whole_until(state.global_step)
        self._write_index()
        self._tidy()
        if state.global_step in self._due:
            self._keep(model, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step in self._due:
            self._keep(extract_model_from_parallel(kwargs["model"]), state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A training that ended early: where it ended (unless the Trainer has put the best weights back by now)."""
        if self._due and not args.load_best_model_at_end:
            self._keep(extract_model_from_parallel(kwargs["model"]), state.global_step)

    def _whole_until(self, step: int) -> dict[str, Snapshot]:
        return {
            name: known
            for name, known in _read_index(self.folder, damaged_is_empty=True).items()
            if known.step in self._due and known.step <= step > 0 and known.path.exists()
        }

    def _keep(self, model: nn.Module, step: int) -> None:
        name = f"step-{step:06d}.safetensors"
        if name in self._kept:
            return
        path = self.folder / name
        _save_atomically(state_of(model), path, {"made_by": made_by(model)})
        self._kept[name] = Snapshot(step, path, sha256(path))
        self._write_index()

    def _write_index(self) -> None:
        files = {name: {"step": one.step, "sha256": one.checksum} for name, one in sorted(self._kept.items())}
        content = {"format": FORMAT, "snapshots": files}
        write_atomically(self.folder / INDEX, json.dumps(content, indent=1) + "\n")

    def _tidy(self) -> None:
        """Remove what does not count: half-written files, and those of another or a later training."""
        if self.folder.exists():
            for file in self.folder.iterdir():
                if file.name not in self._kept and file.name != INDEX and "step-" in file.name:
                    file.unlink()


def trains_a_part(model: nn.Module) -> bool:
    """Whether an adapter or a head is trained; of a model that tunewise does not know, at most half of it."""
    if hasattr(model, "tunewise"):
        return attachment(model).method.trained != "all"
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return 2 * sum(size for size, trained in sizes if trained) <= sum(size for size, _ in sizes)


def made_by(model: nn.Module) -> str:
    """What decides the frozen part of a method: `asym, rank 8, seed 0`; empty for a model unknown to tunewise."""
    if not hasattr(model, "tunewise"):
        return ""
    done = attachment(model)
    return f"{done.method.name}, rank {done.rank}, seed {done.seed}"


@torch.no_grad()
def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The trained tensors of a model, on the CPU, and what says where they act; see `Snapshot.tensors`."""
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
def put_state(model: nn.Module, tensors: Mapping[str, Tensor], layer: str | None = None) -> None:
    """The inverse of `state_of`, for a model that carries the same method; for one layer only, where it is named.
    Raises `StoreError` for a tensor that is not in the model, or has another shape there."""
    held = {key.removeprefix("trained."): t for key, t in tensors.items() if key.startswith("trained.")}
    own = dict(model.named_parameters())
    adapters = {_key(a): a for a in layer_adapters(model) if layer is None or a.target.name == layer}
    strange = [name for name, t in held.items() if name not in own or own[name].shape != t.shape]
    strange += [key for key in tensors if key.startswith("link.") and key.split(".", 3)[3] not in adapters]
    if strange:
        raise StoreError(f"{strange[0]} is not in the model, or has another shape there")
    for key, adapter in adapters.items():
        _take_links(adapter, key, tensors)
    for name, tensor in held.items():
        own[name].copy_(tensor)
    refold(model)


def belongs(key: str, layer: str | None) -> bool:
    """Whether a snapshot's tensor is one of that layer's; of all of them for None."""
    return layer is None or f".{layer}." in key or key.endswith(f":{layer}")


def _take_links(adapter: Adapter, key: str, tensors: Mapping[str, Tensor]) -> None:
    """The finished links and the active one's row space; its values are among the trained parameters, exactly."""
    links: list[tuple[Tensor, Tensor]] = []
    while (b := tensors.get(f"link.{len(links)}.b.{key}")) is not None:
        links.append((tensors[f"link.{len(links)}.where.{key}"], b))
    adapter.take_links(links, tensors.get(f"link.{len(links)}.where.{key}"))


def _key(adapter: Adapter) -> str:
    return f"{adapter.name}:{adapter.target.name}"


def _read_index(folder: Path, damaged_is_empty: bool = False) -> dict[str, Snapshot]:
    file = folder / INDEX
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {
            name: Snapshot(int(known["step"]), folder / name, str(known["sha256"]))
            for name, known in content["snapshots"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        if damaged_is_empty:
            return {}
        raise StoreError(f"{file} can't be read ({error}); remove {folder} and train that run again") from None


def _save_atomically(tensors: dict[str, Tensor], path: Path, notes: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        save_file(tensors, scratch, metadata=notes)
        with Path(scratch).open("rb") as file:
            os.fsync(file.fileno())
        Path(scratch).chmod(0o644)
        os.replace(scratch, path)
    finally:
        Path(scratch).unlink(missing_ok=True)
