"""The Hugging Face Trainer, set up for a run: our optimizer groups, our evaluation, our checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tunewise.device import device_type
from tunewise.errors import DivergedError
from tunewise.methods.chain import ChainCallback
from tunewise.methods.pass_through import RankAllocation
from tunewise.training.checkpoints import seal
from tunewise.training.context import RunContext
from tunewise.training.evaluation import evaluate
from tunewise.training.events import EpochDone, StepDone
from tunewise.training.optimizers import optimizer
from tunewise.training.process_group import BatchShares, SharedBatchLoader


class RunTrainer(Trainer):
    """Differs from its parent in four things: the optimizer is that of the method, evaluation is `evaluate`, a loss
    that is not finite ends the run at once, and several processes share the batches that one would train on."""

    def __init__(self, model: nn.Module, context: RunContext, name: str | None = None) -> None:
        """`name`: of the run in experiment trackers."""
        self.context = context
        self.shares = BatchShares(
            len(context.task.train), context.spec.training.batch_size, context.spec.seed, context.process_group
        )
        self.batch_losses: list[float] = []  # of the optimizer step in progress
        self.batch_shares: list[float] = []
        self.stop_requested = False
        callbacks: list[TrainerCallback] = [ChainCallback(), RankAllocation()]
        if context.spec.training.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
        super().__init__(
            model=model,
            args=_arguments(context, name),
            train_dataset=context.task.train,
            eval_dataset=context.task.validation,
            data_collator=context.task.collate,
            callbacks=[*callbacks, RunCallback(self)],
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False  # each batch's loss is its mean, and `compute_loss` weighs it

    @property
    def network(self) -> nn.Module:
        """The model as it was given."""
        assert self.model is not None
        return self.model

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            spec = self.context.spec
            self.optimizer = optimizer(
                model or self.network,
                lr=spec.learning_rate,
                weight_decay=spec.weight_decay,
                kind=spec.training.optimizer,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """That of transformers, but the first of w steps of warm-up trains at 1 / w of the rate rather than at 0."""
        if self.lr_scheduler is None:
            schedule: Any = super().create_scheduler(num_training_steps, optimizer)
            warmup = self.args.get_warmup_steps(num_training_steps)
            later = schedule.lr_lambdas[0]
            self.lr_scheduler = LambdaLR(
                schedule.optimizer, lambda step: (step + 1) / warmup if step < warmup else later(step)
            )
        return self.lr_scheduler

    def get_train_dataloader(self) -> DataLoader[Any]:
        if self.context.process_group.world_size == 1:
            return super().get_train_dataloader()
        examples: Any = self.context.task.train
        return SharedBatchLoader(examples, batch_sampler=self.shares, collate_fn=self.context.task.collate)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        loss: Any = super().compute_loss(model, inputs)
        share = self.batch_shares[len(self.batch_losses)]
        return loss if share == 1.0 else loss * share

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """The batches of the next optimizer step. Their losses are weighed so that the Trainer's mean over batches and
        DistributedDataParallel's over processes are the mean over all examples, or target tokens, of the step."""
        batches, _ = super().get_batch_samples(*args, **kwargs)
        training, group = self.context.spec.training, self.context.process_group
        step = self.state.global_step % training.steps_per_epoch(len(self.context.task.train))
        first = step * training.gradient_accumulation_steps
        units = [
            self.context.task.units(batch["labels"]) * self.shares.has_examples(first + place)
            for place, batch in enumerate(batches)
        ]
        (total,) = group.sum(float(sum(units)))
        self.batch_shares = [count * len(batches) * group.world_size / total for count in units]
        self.batch_losses = []
        return batches, None

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        process_group, listener = self.context.process_group, self.context.listener
        loss = super().training_step(*args, **kwargs)
        total, stops = process_group.sum(float(loss), float(listener.stop_requested))
        self.batch_losses.append(total / process_group.world_size)
        self.stop_requested = stops > 0
        if not math.isfinite(self.last_loss):
            raise DivergedError(
                f"the training loss is {self.last_loss} at step {self.state.global_step + 1}; lower the learning rate "
                f"(it is {self.context.spec.learning_rate:g})"
            )
        return loss

    @property
    def last_loss(self) -> float:
        """Mean loss of the batches of the optimizer step so far."""
        return sum(self.batch_losses)

    def evaluate(self, *_: object, **__: object) -> dict[str, float]:
        task = self.context.task
        scores = evaluate(
            self.network,
            task,
            task.validation,
            batch_size=4 * self.context.spec.training.batch_size,
            on_batch=self.context.process_group.stop_check(self.context.listener),
        ).scores
        metrics = {"eval_loss": scores.loss, **{f"eval_{k}": v for k, v in scores.metrics.items()}}
        if self.args.report_to:
            self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class RunCallback(TrainerCallback):
    """Writes the journal, emits events, selects the epoch, seals checkpoints, stops on request."""

    def __init__(self, trainer: RunTrainer) -> None:
        self.trainer = trainer
        self.context = trainer.context
        self.rate = 0.0  # of the step in progress

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        # A checkpoint may be older than the evaluation of its own step.
        journal, training = self.context.journal, self.context.spec.training
        interval = training.eval_steps or training.steps_per_epoch(len(self.context.task.train))
        if state.global_step and (state.global_step % interval == 0 or state.global_step == state.max_steps):
            evaluated = self.context.process_group.on_rank_zero(journal.epochs)
            if _passes(state) not in [losses.epoch for losses in evaluated]:
                self.trainer.evaluate()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.rate = float(kwargs["optimizer"].param_groups[0]["lr"])
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients))
        if not bool(torch.isfinite(norms).all()):
            raise DivergedError(f"a gradient is not finite at step {state.global_step + 1}; lower the learning rate")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        loss = self.trainer.last_loss
        epoch = float(state.epoch or 0.0)
        line = {"step": state.global_step, "epoch": epoch, "loss": loss, "learning_rate": self.rate}
        self.context.journal.write(kind="step", **line)
        listener = self.context.listener
        listener.on(StepDone(self.context.spec.id, state.global_step, state.max_steps, epoch, loss))
        alone = self.context.process_group.world_size == 1
        if self.trainer.stop_requested or (alone and listener.stop_requested):
            control.should_save = True
            control.should_training_stop = True
        elif state.global_step == state.max_steps:
            control.should_evaluate = self.context.spec.training.eval_steps is not None

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        task, journal = self.context.task, self.context.journal
        metrics: dict[str, float] = kwargs["metrics"]
        epoch, loss = _passes(state), metrics["eval_loss"]
        scores = {key.removeprefix("eval_"): value for key, value in metrics.items() if key != "eval_loss"}
        value = scores[task.metric]
        self.context.selection.offer(kwargs["model"], epoch, loss, value, task.metric in task.lower_is_better)
        # After the weights are saved: an epoch that the journal has is not evaluated again.
        journal.write(
            kind="epoch",
            epoch=epoch,
            step=state.global_step,
            train_loss=journal.mean_loss_since_epoch(),
            validation={"loss": loss, "metrics": scores},
        )
        self.context.listener.on(EpochDone(self.context.spec.id, epoch, loss, task.metric, value))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        self.context.process_group.wait()  # every rank has written its part of the checkpoint
        self.context.process_group.on_rank_zero(lambda: seal(folder))


def _passes(state: TrainerState) -> float:
    """Passes over the training data so far."""
    return round(state.epoch or 0.0, 6)


def _arguments(context: RunContext, name: str | None) -> TrainingArguments:
    training = context.spec.training
    save_steps = training.save_every or training.eval_steps
    arguments = TrainingArguments(
        output_dir=str(context.folder / "checkpoints"),
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=context.share_of_batch,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        neftune_noise_alpha=training.neftune_noise_alpha,
        use_cpu=device_type() == "cpu",
        learning_rate=context.spec.learning_rate,
        weight_decay=context.spec.weight_decay,
        warmup_steps=training.warmup_ratio,
        lr_scheduler_type="constant_with_warmup" if training.schedule == "constant" else training.schedule,
        max_grad_norm=training.max_grad_norm,
        seed=context.spec.seed,
        data_seed=context.spec.seed,
        eval_strategy="epoch" if training.eval_steps is None else "steps",
        eval_steps=training.eval_steps,
        save_strategy="epoch" if save_steps is None else "steps",
        save_steps=save_steps or 500,
        save_total_limit=2,  # the one before, should the newest be damaged
        logging_strategy="steps" if context.track else "no",
        logging_steps=max(1, context.total_steps // 200),
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to=list(context.track) or "none",
        run_name=name,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )
    _ = arguments.device  # sets the number of GPUs; a run takes one of them: DataParallel would change the batch
    arguments._n_gpu = min(arguments._n_gpu, 1)
    return arguments
