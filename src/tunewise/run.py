"""One run, from its spec to its record: the whole story, in order. Read this first.

spec -> task -> model -> method -> train -> select -> measure -> save -> verify -> record
"""

from __future__ import annotations

import datetime
import gc
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor, nn

from tunewise.errors import DivergedError, is_out_of_memory, out_of_memory_noted
from tunewise.measures.bounds.clipping import TRAIN_LOSSES
from tunewise.methods.saving import save
from tunewise.methods.verify import verify
from tunewise.spec import RunSpec
from tunewise.store.disk import full_disk_named
from tunewise.store.environment import environment
from tunewise.store.folders import RunStore
from tunewise.store.records import Check, ModelFacts, Results, RunRecord
from tunewise.tasks.build import build_task
from tunewise.tasks.contract import Task
from tunewise.training import checkpoints
from tunewise.training.build import build_model, count_parameters, total_steps
from tunewise.training.evaluation import Evaluation, evaluate
from tunewise.training.events import Listener, Phase, Pruned, RunFinished, RunStarted
from tunewise.training.journal import Journal
from tunewise.training.linearised import verify_linearised
from tunewise.training.process_group import SINGLE_PROCESS, ProcessGroup
from tunewise.training.selection import Selection
from tunewise.training.tracking import tracked
from tunewise.training.trainer import make_trainer
from tunewise.training.trajectory import TRAJECTORY, SnapshotOptions, is_whole, lacks_snapshots


def run(
    spec: RunSpec,
    store: RunStore,
    *,
    process_group: ProcessGroup = SINGLE_PROCESS,
    task: Task | None = None,
    listener: Listener | None = None,
    trajectory: SnapshotOptions | None = None,
    again: bool = False,
    track: Sequence[str] = (),
    build: Callable[[RunSpec, Task], nn.Module] = build_model,
    computed: Sequence[str] = (),
    clock: Callable[[], float] = time.monotonic,
) -> RunRecord:
    """Do the run, or what is missing of it, and return its record. A run that is done, or
    that diverged, is not done again: it would come out the same.

    `trajectory` keeps snapshots of the training in the run's folder; the result is the same to the last bit. A
    finished run that kept none is trained anew for them only with `again`. `track` names trackers of
    `training.tracking` that the Trainer reports to. `build` makes the model in another way than `build_model`, and
    `computed` says for the record, in words, what was not computed as in a run by itself; `clock` counts the seconds
    that are its own. `process_group`: the processes that train this model together, each of which calls this with the same
    arguments; the first one has the lock and writes.

    A stop (`Interrupted`), a kill or a crash leaves checkpoints; the same call goes on from the last one. A loss or
    gradient that is not finite ends the run as `diverged`, running out of memory as `oom`, a listener that finds it
    fallen behind (`Pruned`) as `pruned`: a record, no exception. A run that ran out of memory keeps its checkpoints:
    where it is started again, with more memory, it goes on from them.

    Raises:
        SpecError, DataError, ModelError: what the user can mend.
        StoreError: another process has this run, or the disk is full.
        Interrupted: the listener asked for a stop.
    """
    listener = listener or Listener()
    done = process_group.on_rank_zero(lambda: store.finished(spec.id))
    if done is not None and not (again and lacks_snapshots(done, store.folder(spec.id), trajectory)):
        return done
    started, since = datetime.datetime.now(datetime.UTC), clock()
    task = task or build_task(spec)
    status: Literal["done", "diverged", "oom", "pruned"] = "done"
    model: nn.Module | None = None
    model_facts: ModelFacts | None = None
    results: Results | None = None
    check: Check | None = None
    problem: str | None = None
    with process_group.lock_run(store, spec.id) as folder, full_disk_named(folder):
        meanwhile = process_group.on_rank_zero(
            lambda: store.finished(spec.id)
        )  # by another, between the first look and the lock
        if meanwhile is not None and done is None:
            return meanwhile
        process_group.on_rank_zero(lambda: store.begin(spec))
        ways = process_group.on_rank_zero(
            lambda: checkpoints.ways(folder / "checkpoints", [*computed, *process_group.describe()])
        )
        try:
            model = process_group.on_every_rank(lambda: build(spec, task))
            model_facts = count_parameters(model)
            results, check = _train_and_measure(model, spec, task, folder, listener, trajectory, track, process_group)
        except DivergedError as error:
            status, problem = "diverged", str(error)
        except Pruned as error:
            status, problem = "pruned", str(error)
        except Exception as error:
            if (
                not is_out_of_memory(error) or process_group.world_size > 1
            ):  # of several one alone: their launcher ends the others
                raise
            status, results = "oom", None
            where = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
            problem = f"out of memory{where}; use a smaller batch_size, max_length or rank, or another method"
            shutil.rmtree(folder / "adapter", ignore_errors=True)  # it has not been checked
        model = None
        gc.collect()  # layers and adapters refer to each other: without this the model waits for the collector
        record = RunRecord(
            id=spec.id,
            status=status,
            spec=spec,
            environment=environment(),
            started=started.isoformat(timespec="seconds"),
            seconds=clock() - since,
            model=model_facts,
            data=task.facts,
            results=results,
            check=check,
            error=problem,
            computed=ways,
            files={}
            if status == "oom"
            else process_group.on_rank_zero(lambda: store.checksums(spec.id)),  # that one may go on
        )
        process_group.on_rank_zero(lambda: store.write(record))
        process_group.on_rank_zero(lambda: store.tidy(spec.id, going_on=status == "oom"))
    listener.on(RunFinished(spec.id, spec.method.label, spec.seed, record.status, record.seconds))
    return record


def _has_no_beginning(
    spec: RunSpec, folder: Path, steps: int, checkpoint: Path, wanted: SnapshotOptions | None
) -> bool:
    """Whether a run was begun without the trajectory that is wanted now, so that going on would leave it with holes."""
    if wanted is None or not wanted.applies_to(spec.method.name):
        return False
    return not is_whole(folder / TRAJECTORY, wanted.count, steps, until=checkpoints.step_of(checkpoint))


def _beginning(
    spec: RunSpec, folder: Path, steps: int, trajectory: SnapshotOptions | None, selection: Selection
) -> Path | None:
    """The checkpoint to go on from; None for the start, where nothing is left that could be taken for this run's."""
    if spec.method.name == "peft:adalora":  # its ranks change, and PEFT can't load such a checkpoint into a fresh model
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    checkpoint = checkpoints.latest(folder / "checkpoints")
    if checkpoint and _has_no_beginning(spec, folder, steps, checkpoint, trajectory):
        shutil.rmtree(folder / "checkpoints")
        checkpoint = None
    if checkpoint is None:  # from the start: nothing of an earlier, damaged run may be taken for this one's
        selection.forget()
        shutil.rmtree(folder / "adapter", ignore_errors=True)
        (folder / "predictions.npz").unlink(missing_ok=True)
    return checkpoint


def _train_and_measure(
    model: nn.Module,
    spec: RunSpec,
    task: Task,
    folder: Path,
    listener: Listener,
    trajectory: SnapshotOptions | None,
    track: Sequence[str],
    process_group: ProcessGroup,
) -> tuple[Results, Check]:
    journal = Journal(folder / "history.jsonl", writes=process_group.is_rank_zero)
    selection = Selection(folder / "selected", by=spec.training.select, process_group=process_group)
    steps = total_steps(spec, len(task.train))
    checkpoint = process_group.on_rank_zero(lambda: _beginning(spec, folder, steps, trajectory, selection))
    first_step = checkpoints.step_of(checkpoint) if checkpoint else 0
    process_group.on_rank_zero(lambda: journal.rewind(first_step))
    listener.on(RunStarted(spec.id, spec.method.label, spec.seed, steps, first_step))

    with tracked(track, spec, folder) as name:
        trainer = make_trainer(
            model,
            spec,
            task,
            folder=folder,
            listener=listener,
            journal=journal,
            selection=selection,
            trajectory=trajectory,
            track=track,
            name=name,
            process_group=process_group,
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    process_group.raise_if_stopped(listener)

    listener.on(Phase("measuring", run_id=spec.id))
    epoch = selection.take(model)
    size = 4 * spec.training.batch_size
    scored = {
        name: evaluate(model, task, split, batch_size=size, on_batch=process_group.batch_check(listener))
        for name, split in (("train", task.train), ("validation", task.validation), ("test", task.test))
    }
    results = Results(
        metric=task.metric,
        lower_is_better=list(task.lower_is_better),
        selected_epoch=epoch,
        selected_by=selection.rule,
        train=scored["train"].scores,
        validation=scored["validation"].scores,
        test=scored["test"].scores,
        confusion=task.confusion(scored["test"].logits, scored["test"].labels),
    )
    train_losses = task.losses(scored["train"].logits, scored["train"].labels)
    listener.on(Phase("saving and checking", run_id=spec.id))
    with out_of_memory_noted("while predictions and adapter were saved and checked"):
        process_group.on_rank_zero(lambda: _keep_predictions(folder / "predictions.npz", scored["test"], train_losses))
        return results, _save_and_check(model, spec, task, folder, process_group)


def _save_and_check(model: nn.Module, spec: RunSpec, task: Task, folder: Path, process_group: ProcessGroup) -> Check:
    path, batch = folder / "adapter", task.collate(task.test[: min(16, len(task.test))])
    process_group.on_rank_zero(lambda: save(model, path) and None)
    if spec.training.linearised:
        return process_group.on_rank_zero(lambda: verify_linearised(model, path, task.load_model(spec.seed), batch))
    return process_group.on_rank_zero(lambda: verify(model, path, task.load_model(spec.seed), batch))


def _keep_predictions(path: Path, test: Evaluation, train_losses: Tensor) -> None:
    """Test logits and labels, for item-level comparisons later, and each training example's loss."""
    kept = {"logits": test.logits, "labels": test.labels, TRAIN_LOSSES: train_losses}
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **{name: values.numpy() for name, values in kept.items()})
