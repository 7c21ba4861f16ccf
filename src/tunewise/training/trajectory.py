"""The trajectory of a run: snapshots at evenly spaced optimizer steps, written while it trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunewise.catalog import get_method
from tunewise.errors import StoreError
from tunewise.methods.attachment import attachment
from tunewise.store.names import TRAJECTORY
from tunewise.store.records import RunRecord
from tunewise.training.build import total_steps
from tunewise.training.snapshots import INDEX, Snapshot, read_index, snapshots, write_index

COUNT = 20


@dataclass(frozen=True)
class SnapshotOptions:
    """Which snapshots a run keeps: `count` besides the start; with `full` also of full fine-tuning."""

    count: int = COUNT
    full: bool = False

    def applies_to(self, method: str) -> bool:
        return self.full or get_method(method).trained != "all"


def complete_snapshots(record: RunRecord, folder: Path) -> list[Snapshot]:
    """The snapshots of a finished run, from its start to its end; empty where it has none, or not all of them."""
    kept = snapshots(folder / TRAJECTORY)
    if not kept or not record.data:
        return []
    ends = [kept[0].step, kept[-1].step]
    return kept if ends == [0, total_steps(record.spec, record.data.train)] else []


def lacks_snapshots(record: RunRecord, folder: Path, options: SnapshotOptions | None) -> bool:
    """Whether a finished run lacks the snapshots that are asked for."""
    if options is None or record.status != "done" or not options.applies_to(record.spec.method.name):
        return False
    return not complete_snapshots(record, folder)


def explain_missing(method: str) -> str:
    """What to do about a run without snapshots."""
    flags = "--trajectory 20" if SnapshotOptions().applies_to(method) else "--trajectory 20 --trajectory-full"
    return f"kept no snapshots; add {flags} to train it once more with them (the result is the same)"


def snapshot_steps(total: int, count: int) -> list[int]:
    """The optimizer steps after which a snapshot is kept: 0, and `count` evenly spaced ones up to the last."""
    return sorted({round(total * i / count) for i in range(count + 1)})


def has_snapshots_until(folder: Path, count: int, total: int, step: int) -> bool:
    """Whether no snapshot up to `step` is missing in a training of `total` steps that keeps `count` of them."""
    try:
        existing = {snapshot.step for snapshot in snapshots(folder) if snapshot.path.exists()}
    except StoreError:
        return False
    return existing.issuperset(due for due in snapshot_steps(total, count) if due <= step)


class TrajectoryCallback(TrainerCallback):
    """Keeps snapshots while a `transformers.Trainer` trains; the training does not change by a bit.

    After a resume the snapshots after the step of the checkpoint are made anew. In the list of callbacks it stands
    after `ChainCallback`. Of several processes rank 0 writes.

    Args:
        folder: Where snapshots go; those of another training there are removed.
        snapshots: How many, evenly spaced, up to the last step; the start is kept besides.
        full: Also of full fine-tuning, where each snapshot is as large as the model.

    Example:
        >>> import tunewise
        >>> callbacks = [tunewise.ChainCallback(), tunewise.TrajectoryCallback("out/trajectory", snapshots=10)]
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
        if not state.is_world_process_zero or not (self.full or _trains_a_part(model)):
            return
        self._due = set(snapshot_steps(state.max_steps, self.count))
        self._kept = self._kept_until(state.global_step)
        write_index(self.folder, self._kept)
        self._remove_others()
        if state.global_step in self._due:
            self._keep(model, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step in self._due:
            self._keep(extract_model_from_parallel(kwargs["model"]), state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the end of a training that was stopped early, unless the Trainer has loaded the best weights again."""
        if self._due and not args.load_best_model_at_end:
            self._keep(extract_model_from_parallel(kwargs["model"]), state.global_step)

    def _kept_until(self, step: int) -> dict[str, Snapshot]:
        try:
            index = read_index(self.folder)
        except StoreError:
            return {}
        return {
            name: snapshot
            for name, snapshot in index.items()
            if snapshot.step in self._due and snapshot.step <= step > 0 and snapshot.path.exists()
        }

    def _keep(self, model: nn.Module, step: int) -> None:
        name = f"step-{step:06d}.safetensors"
        if name not in self._kept:
            self._kept[name] = Snapshot.write(model, step, self.folder / name)
            write_index(self.folder, self._kept)

    def _remove_others(self) -> None:
        """Remove half-written files, and those of another or a later training."""
        for file in self.folder.iterdir():
            if file.name not in self._kept and file.name != INDEX and "step-" in file.name:
                file.unlink()


def _trains_a_part(model: nn.Module) -> bool:
    """Whether an adapter or a head is trained; without a method of tunewise, at most half of the parameters."""
    if hasattr(model, "tunewise"):
        return attachment(model).method.trained != "all"
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return 2 * sum(size for size, trained in sizes if trained) <= sum(size for size, _ in sizes)
