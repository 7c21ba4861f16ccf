"""The Hugging Face Trainer, set up for a run: our optimizer groups, our evaluation, our checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tunewise.errors import DivergedError
from tunewise.methods.chain import ChainCallback
from tunewise.methods.pass_through import RankAllocation
from tunewise.spec import RunSpec
from tunewise.tasks.contract import Task
from tunewise.training.build import total_steps
from tunewise.training.checkpoints import seal
from tunewise.training.evaluation import evaluate
from tunewise.training.events import EpochDone, Listener, StepDone
from tunewise.training.journal import Journal
from tunewise.training.optimizers import optimizer
from tunewise.training.process_group import SINGLE_PROCESS, BatchShares, ProcessGroup, SharedBatchLoader, scale_to_batch
from tunewise.training.selection import Selection
from tunewise.training.trajectory import TRAJECTORY, SnapshotOptions, TrajectoryCallback


class RunTrainer(Trainer):
    """Differs from its parent in four things: the optimizer is the method's, evaluation is `measures.quality`, a loss
    that is not finite ends the run at once, and several processes share the very batches that one would train on."""

    def __init__(
        self,
        *args: Any,
        spec: RunSpec,
        task: Task,
        listener: Listener,
        process_group: ProcessGroup = SINGLE_PROCESS,
        **kwargs: Any,
    ) -> None:
        self.spec = spec
        self.task = task
        self.listener = listener
        self.process_group = process_group
        self.shares = BatchShares(len(task.train), spec.training.batch_size, spec.seed, process_group)
        self.last_loss = math.nan
        self.stop_requested = False
        super().__init__(*args, **kwargs)

    @property
    def _network(self) -> nn.Module:
        assert self.model is not None
        return self.model

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = optimizer(
                model or self._network,
                lr=self.spec.learning_rate,
                weight_decay=self.spec.weight_decay,
            )
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader[Any]:
        if self.process_group.world_size == 1:
            return super().get_train_dataloader()
        examples: Any = self.task.train
        return SharedBatchLoader(examples, batch_sampler=self.shares, collate_fn=self.task.collate)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if self.process_group.world_size == 1:
            return super().compute_loss(model, inputs, *args, **kwargs)
        assert isinstance(model, DistributedDataParallel)  # what averages the gradients
        outputs = model(**inputs)
        units = float(self.task.weights(outputs.logits, inputs["labels"]).sum())
        return scale_to_batch(outputs.loss, units * self.shares.counts(self.state.global_step), self.process_group)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        total, stops = self.process_group.sum(float(loss), float(self.listener.stop_requested))
        self.last_loss = total / self.process_group.world_size
        self.stop_requested = stops > 0
        if not math.isfinite(self.last_loss):
            raise DivergedError(
                f"the training loss is {self.last_loss} at step {self.state.global_step + 1}; lower the learning rate "
                f"(it is {self.spec.learning_rate:g})"
            )
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        scored = evaluate(
            self._network,
            self.task,
            self.task.validation,
            batch_size=4 * self.spec.training.batch_size,
            on_batch=self.process_group.batch_check(self.listener),
        ).scores
        metrics = {"eval_loss": scored.loss, **{f"eval_{k}": v for k, v in scored.metrics.items()}}
        if self.args.report_to:
            self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class RunCallback(TrainerCallback):
    """Keeps the journal, tells the listener, selects the epoch, seals checkpoints, stops where asked."""

    def __init__(self, spec: RunSpec, task: Task, listener: Listener, journal: Journal, selection: Selection) -> None:
        self.spec = spec
        self.task = task
        self.listener = listener
        self.journal = journal
        self.selection = selection
        self.trainer: RunTrainer | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A checkpoint on an epoch's last step may be older than that epoch's evaluation, which is made up for here.
        assert self.trainer is not None
        epoch, rest = divmod(state.global_step * self.spec.training.epochs, state.max_steps)
        if epoch and not rest and not self.trainer.process_group.on_rank_zero(lambda: self.journal.has_epoch(epoch)):
            self.trainer.evaluate()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients))
        if not bool(torch.isfinite(norms).all()):
            raise DivergedError(f"a gradient is not finite at step {state.global_step + 1}; lower the learning rate")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self.trainer is not None
        loss = self.trainer.last_loss
        epoch = float(state.epoch or 0.0)
        rate = float(kwargs["lr_scheduler"].get_last_lr()[0])
        self.journal.write(kind="step", step=state.global_step, epoch=epoch, loss=loss, learning_rate=rate)
        self.listener.on(StepDone(self.spec.id, state.global_step, state.max_steps, epoch, loss))
        if self.trainer.stop_requested or (self.trainer.process_group.world_size == 1 and self.listener.stop_requested):
            control.should_save = True
            control.should_training_stop = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        metrics: dict[str, float] = kwargs["metrics"]
        epoch = round(state.epoch or 0.0)
        scores = {key.removeprefix("eval_"): value for key, value in metrics.items() if key != "eval_loss"}
        lower = self.task.metric in self.task.lower_is_better
        self.selection.offer(kwargs["model"], epoch, metrics["eval_loss"], scores[self.task.metric], lower)
        # Only now: what the journal has is not evaluated again, so its weights must be where they belong.
        self.journal.write(
            kind="epoch",
            epoch=epoch,
            step=state.global_step,
            train_loss=self.journal.mean_loss_since_epoch(),
            validation={"loss": metrics["eval_loss"], "metrics": scores},
        )
        value = scores[self.task.metric]
        self.listener.on(EpochDone(self.spec.id, epoch, metrics["eval_loss"], self.task.metric, value))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self.trainer is not None
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        self.trainer.process_group.any(False)  # all have put their part into it
        self.trainer.process_group.on_rank_zero(lambda: seal(folder))


def make_trainer(
    model: nn.Module,
    spec: RunSpec,
    task: Task,
    *,
    folder: Path,
    listener: Listener,
    journal: Journal,
    selection: Selection,
    trajectory: SnapshotOptions | None = None,
    track: Sequence[str] = (),
    name: str | None = None,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> RunTrainer:
    """A Trainer that leaves sealed checkpoints in `folder/checkpoints`, the selected weights in `selection` and, where
    it is asked for, the path there in `folder/trajectory`. It reports to the trackers `track` under `name`. Of the
    processes of `process_group`, rank 0 writes."""
    training = spec.training
    steps = total_steps(spec, len(task.train))
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=training.epochs,
        per_device_train_batch_size=math.ceil(training.batch_size / process_group.world_size),
        use_cpu=process_group.world_size > 1
        and not torch.cuda.is_available(),  # else several processes without GPUs stay apart
        learning_rate=spec.learning_rate,
        weight_decay=spec.weight_decay,
        warmup_steps=training.warmup_ratio,
        lr_scheduler_type="constant_with_warmup" if training.schedule == "constant" else training.schedule,
        max_grad_norm=training.max_grad_norm,
        seed=spec.seed,
        data_seed=spec.seed,
        eval_strategy="epoch",
        save_strategy="epoch" if training.save_every is None else "steps",
        save_steps=training.save_every or 500,
        save_total_limit=2,  # the one before, should the newest be damaged
        logging_strategy="steps" if track else "no",
        logging_steps=max(1, steps // 200),
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to=list(track) or "none",
        run_name=name,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )
    callback = RunCallback(spec, task, listener, journal, selection)
    kept = (
        [TrajectoryCallback(folder / TRAJECTORY, trajectory.count, full=trajectory.full)]
        if trajectory and process_group.is_rank_zero
        else []
    )
    _ = arguments.device  # sets the number of GPUs, of which a run takes one: DataParallel would change the batch
    arguments._n_gpu = min(arguments._n_gpu, 1)
    trainer = RunTrainer(
        model=model,
        args=arguments,
        train_dataset=task.train,
        eval_dataset=task.validation,
        data_collator=task.collate,
        callbacks=[ChainCallback(), RankAllocation(), *kept, callback],
        spec=spec,
        task=task,
        listener=listener,
        process_group=process_group,
    )
    callback.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    return trainer
