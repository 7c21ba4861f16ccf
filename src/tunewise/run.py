"""One run, from its spec to its record: the whole story, in order. Read this first.

spec -> task -> model -> method -> train -> select -> evaluate -> save -> verify -> record
"""

from __future__ import annotations

import datetime
import gc
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from tunewise.errors import DivergedError, is_out_of_memory, out_of_memory_noted
from tunewise.methods.saving import save
from tunewise.methods.verify import verify
from tunewise.spec import RunSpec
from tunewise.store.answers import write_answers
from tunewise.store.environment import environment
from tunewise.store.files import follow_umask, full_disk_named
from tunewise.store.folders import RunStore
from tunewise.store.names import ANSWERS, PREDICTIONS, TRAIN_LOSSES
from tunewise.store.records import Check, ModelFacts, Results, RunRecord, Status
from tunewise.tasks.build import build_task
from tunewise.tasks.contract import Split, Task
from tunewise.training import checkpoints
from tunewise.training.build import build_model, count_parameters
from tunewise.training.context import RunContext
from tunewise.training.evaluation import Evaluation, evaluate, gap_sample
from tunewise.training.events import Listener, Phase, RunFinished, RunStarted
from tunewise.training.floor import measure_floor
from tunewise.training.harness import run_harness
from tunewise.training.linearised import verify_linearised
from tunewise.training.process_group import SINGLE_PROCESS, ProcessGroup
from tunewise.training.tracking import tracked
from tunewise.training.trainer import RunTrainer


def run(
    spec: RunSpec,
    store: RunStore,
    *,
    task: Task | None = None,
    listener: Listener | None = None,
    track: Sequence[str] = (),
    is_trial: bool = False,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> RunRecord:
    """Do a run, or what is missing of it, and return its record.

    A run that is done or diverged is not done again. After `Interrupted`, a kill or a crash the same call continues
    from the last checkpoint.

    Args:
        spec: What to train.
        store: The runs folder.
        task: The data set, where it is read already.
        listener: Receives events and may ask for a stop.
        track: Experiment trackers that the Trainer reports to.
        is_trial: Whether validation alone counts, so that the untrained model is not scored on the test split.
        process_group: The processes that train this model together; each of them makes this call.

    Returns:
        The record. Its status is `diverged` where a loss or gradient is not finite, and `oom` where memory ran out (it
        keeps its checkpoints).

    Raises:
        SpecError, DataError, ModelError: The run can't be done as specified.
        StoreError: Another process has this run, or the disk is full.
        Interrupted: The listener asked for a stop.
    """
    listener = listener or Listener()
    finished = process_group.on_rank_zero(lambda: store.finished(spec.id))
    if finished is not None:
        return finished
    started, begun = datetime.datetime.now(datetime.UTC), time.monotonic()
    task = task or build_task(spec)
    with process_group.lock_run(store, spec.id) as folder, full_disk_named(folder):
        finished = process_group.on_rank_zero(lambda: store.finished(spec.id))
        if finished is not None:  # another process finished it before this one had the lock
            return finished
        process_group.on_rank_zero(lambda: store.begin(spec))
        processes = process_group.on_rank_zero(
            lambda: checkpoints.most_processes(folder / "checkpoints", process_group.world_size)
        )
        outcome = _attempt(RunContext(spec, task, folder, listener, process_group, track, is_trial))
        gc.collect()  # layers and adapters refer to each other: without this the model stays in memory
        record = RunRecord(
            id=spec.id,
            status=outcome.status,
            spec=spec,
            environment=environment(),
            started=started.isoformat(timespec="seconds"),
            seconds=time.monotonic() - begun,
            model=outcome.model,
            data=task.facts,
            results=outcome.results,
            check=outcome.check,
            error=outcome.error,
            processes=processes,
            files={} if outcome.may_continue else process_group.on_rank_zero(lambda: store.checksums(spec.id)),
        )
        process_group.on_rank_zero(lambda: follow_umask(folder))
        process_group.on_rank_zero(lambda: store.write(record))
        process_group.on_rank_zero(lambda: store.tidy(spec.id, keep_checkpoints=outcome.may_continue))
    listener.on(RunFinished(spec.id, spec.method.label, spec.seed, record.status, record.seconds))
    return record


@dataclass
class _Outcome:
    status: Status = "done"
    model: ModelFacts | None = None
    results: Results | None = None
    check: Check | None = None
    error: str | None = None

    @property
    def may_continue(self) -> bool:
        """With more memory, from its last checkpoint."""
        return self.status == "oom"


def _attempt(context: RunContext) -> _Outcome:
    """Build, train and save the model; what ends the run for good is an outcome, too."""
    outcome = _Outcome()
    try:
        model = context.process_group.on_every_rank(lambda: build_model(context.spec, context.task))
        outcome.model = count_parameters(model)
        outcome.results, outcome.check = _train_and_measure(model, context)
    except DivergedError as error:
        outcome.status, outcome.error = "diverged", str(error)
    except Exception as error:
        if not is_out_of_memory(error) or context.process_group.world_size > 1:  # the launcher ends the other ranks
            raise
        where = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
        outcome.status = "oom"
        outcome.error = f"out of memory{where}; use a smaller batch_size, max_length or rank, or another method"
        shutil.rmtree(context.folder / "adapter", ignore_errors=True)  # it has not been checked
    return outcome


def _train_and_measure(model: nn.Module, context: RunContext) -> tuple[Results, Check]:
    spec, task, listener, process_group = context.spec, context.task, context.listener, context.process_group
    checkpoint = process_group.on_rank_zero(lambda: _prepare_folder(context))
    first_step = checkpoints.step_of(checkpoint) if checkpoint else 0
    listener.on(RunStarted(spec.id, spec.method.label, spec.seed, context.total_steps, first_step))
    with tracked(context.track, spec, context.folder) as name:
        trainer = RunTrainer(model, context, name)
        floor = measure_floor(context, lambda: _evaluate_test(model, context))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    process_group.raise_if_stopped(listener)

    listener.on(Phase("measuring", run_id=spec.id))
    epoch = context.selection.load(model)
    train, validation = (_evaluate(model, context, split) for split in (gap_sample(spec, task), task.validation))
    test, metric, lower_is_better = _evaluate_test(model, context)
    results = Results(
        metric=metric,
        lower_is_better=lower_is_better,
        selected_epoch=epoch,
        selected_by=context.selection.rule,
        train=train.scores,
        validation=validation.scores,
        test=test.scores,
        floor=floor,
        epochs=context.journal.epochs(),
        items=sum(metric in answer.scores for answer in test.answers) or None,
        confusion=task.confusion(test.logits, test.labels),
    )
    listener.on(Phase("saving and checking", run_id=spec.id))
    with out_of_memory_noted("while predictions and adapter were saved and checked"):
        losses = task.losses(train.logits, train.labels)
        process_group.on_rank_zero(lambda: _save_predictions(context.folder, test, losses))
        return results, process_group.on_rank_zero(lambda: _save_and_check(model, context))


def _evaluate(model: nn.Module, context: RunContext, split: Split) -> Evaluation:
    stop_check = context.process_group.stop_check(context.listener)
    return evaluate(model, context.task, split, batch_size=4 * context.spec.training.batch_size, on_batch=stop_check)


def _evaluate_test(model: nn.Module, context: RunContext) -> tuple[Evaluation, str, list[str]]:
    """The test split and, where it is asked for, a task of lm-evaluation-harness; the main metric, which is then that
    task's, and those for which a lower value is better."""
    task, test = context.task, _evaluate(model, context, context.task.test)
    if task.evaluation.harness is None:
        return test, task.metric, list(task.lower_is_better)
    harness = run_harness(model, task, 4 * context.spec.training.batch_size)
    lower_is_better = [*task.lower_is_better, *harness.lower_is_better]
    return test.extended(harness.metrics, harness.answers), harness.metric, lower_is_better


def _prepare_folder(context: RunContext) -> Path | None:
    """Leave in the folder what the run continues from; returns the checkpoint, None to start from step 0."""
    folder = context.folder
    if context.spec.method.name == "peft:adalora":  # its ranks change, and PEFT can't load that into a fresh model
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    checkpoint = checkpoints.latest(folder / "checkpoints")
    if checkpoint is None:  # files of an earlier, damaged run must not be taken for those of this one
        context.selection.forget()
        shutil.rmtree(folder / "adapter", ignore_errors=True)
        for name in (PREDICTIONS, ANSWERS):
            (folder / name).unlink(missing_ok=True)
    context.journal.rewind(checkpoints.step_of(checkpoint) if checkpoint else 0)
    return checkpoint


def _save_and_check(model: nn.Module, context: RunContext) -> Check:
    """Save the adapter, load it again by stock PEFT onto a fresh base, and compare the logits."""
    spec, task, path = context.spec, context.task, context.folder / "adapter"
    save(model, path)
    batch = task.collate(task.test[: min(16, len(task.test))])
    check = verify_linearised if spec.training.linearised else verify
    return check(model, path, task.load_model(spec.seed), batch)


def _save_predictions(folder: Path, test: Evaluation, train_losses: Tensor) -> None:
    """Test logits and labels and the generated answers, for item-level comparisons later, and the losses of the
    training examples that the gap is taken from."""
    arrays = {"logits": test.logits, "labels": test.labels, TRAIN_LOSSES: train_losses}
    with (folder / PREDICTIONS).open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **{name: values.numpy() for name, values in arrays.items()})
    if test.answers:
        write_answers(folder / ANSWERS, test.answers)
