"""Chains in other people's training loops: transformers' `Trainer` and TRL's `SFTTrainer`, checkpoints and resuming."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import Trainer, TrainerCallback, TrainingArguments

import tunewise
from contracts import models
from tunewise import CATALOG, Chain
from tunewise.errors import StoreError
from tunewise.methods.chain import current_link

CHAINED = [name for name, method in CATALOG.items() if method.chain is not None]
STEPS, LINKS, ROWS = 12, 3, 4  # restarts after steps 4 and 8


class Watch(TrainerCallback):
    """The link, the learning rate and the logits at every step; logits again at every checkpoint."""

    def __init__(self) -> None:
        self.links: list[int] = []
        self.rates: list[float] = []
        self.saved: dict[int, torch.Tensor] = {}

    def on_step_begin(self, args, state, control, **kwargs):
        if tunewise.attachment(kwargs["model"]).method.chain is not None:
            self.links.append(current_link(kwargs["model"]))
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    def on_save(self, args, state, control, **kwargs):
        with torch.random.fork_rng(devices=[]):
            self.saved[state.global_step] = models.logits(kwargs["model"], models.batch("bert"))


def examples(count: int = 20) -> list[dict[str, torch.Tensor]]:
    whole = models.batch("bert", rows=count, seed=2)
    return [{key: value[i] for key, value in whole.items()} for i in range(count)]


def make_trainer(
    name: str, folder: Path, chain: Chain | None, callbacks: list[Any] | None = None, seed: int = 0, **options: Any
) -> Trainer:
    """A tiny BERT with dropout; five steps are an epoch, so that it ends elsewhere than the links."""
    model = tunewise.attach(models.make("bert", dropout=0.1), name, rank=4, seed=seed, chain=chain)
    arguments = {
        "max_steps": STEPS,
        "per_device_train_batch_size": ROWS,
        "learning_rate": 1e-2,
        "save_strategy": "steps",
        "save_steps": 1,
        "logging_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
        **options,
    }
    callbacks = [tunewise.ChainCallback()] if callbacks is None else callbacks
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **arguments),
        train_dataset=examples(),
        eval_dataset=examples(8),
        callbacks=callbacks,
    )


@functools.cache
def uninterrupted(name: str, folder: Path) -> SimpleNamespace:
    """One run from start to end with a checkpoint at every step."""
    watch = Watch()
    trainer = make_trainer(name, folder / name, Chain(links=LINKS), [tunewise.ChainCallback(), watch])
    trainer.train()
    state = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    return SimpleNamespace(trainer=trainer, watch=watch, state=state, folder=folder / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("name", CHAINED)
def test_the_trainer_runs_exactly_the_links_asked_for(name, folder):
    run = uninterrupted(name, folder)
    assert run.watch.links == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("name", CHAINED)
def test_every_checkpoint_is_a_stock_adapter_with_the_right_outputs(name, folder):
    """PEFT alone, on the pristine base; 1e-5. A checkpoint on the boundary holds the next link."""
    run = uninterrupted(name, folder)
    assert sorted(run.watch.saved) == list(range(1, STEPS + 1))
    for step, expected in run.watch.saved.items():
        base = models.make("bert", dropout=0.1)
        loaded = PeftModel.from_pretrained(base, str(run.folder / f"checkpoint-{step}"))
        torch.testing.assert_close(models.logits(loaded, models.batch("bert")), expected, rtol=0, atol=1e-5)
        assert loaded.peft_config["default"].r == 4 * (1 + step // 4 if step < STEPS else LINKS)


RESUMED = {"inside a link": 2, "one step before a restart": 3, "on a restart": 4, "in the last link": 9}


@pytest.mark.parametrize(
    ("name", "step"),
    [
        pytest.param(
            name, step, id=f"{name}-{when}", marks=[] if step == 4 or name in ("cola", "c-paca") else pytest.mark.slow
        )
        for name in CHAINED
        for when, step in RESUMED.items()
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(name, step, folder, tmp_path):
    """CPU, fp32, dropout on: links, columns or frozen A, optimizer, schedule and random state all go on."""
    run, watch = uninterrupted(name, folder), Watch()
    checkpoint = tmp_path / f"checkpoint-{step}"
    shutil.copytree(run.folder / checkpoint.name, checkpoint)
    trainer = make_trainer(name, tmp_path, Chain(links=LINKS), [tunewise.ChainCallback(), watch], save_strategy="no")
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert watch.links == run.watch.links[step:]
    assert watch.rates == run.watch.rates[step:]
    found = trainer.model.state_dict()
    assert set(found) == set(run.state)
    assert [key for key in found if not torch.equal(found[key], run.state[key])] == []


@pytest.mark.parametrize("name", ["c3la", "cola"])
def test_restarts_leave_the_learning_rate_schedule_alone(name, folder):
    """Linear decay as if nothing happened: the same numbers as one link's, and as the formula's."""
    run, watch = uninterrupted(name, folder), Watch()
    assert run.watch.rates == pytest.approx([1e-2 * (1 - step / STEPS) for step in range(STEPS)])
    make_trainer(name, folder / f"{name}-one", Chain(links=1), [tunewise.ChainCallback(), watch]).train()
    assert watch.rates == run.watch.rates


def test_resuming_on_another_schedule_is_refused(folder, tmp_path):
    run = uninterrupted("c3la", folder)
    trainer = make_trainer("c3la", tmp_path, Chain(links=2))
    with pytest.raises(StoreError, match="link 1.*link 2"):
        trainer.train(resume_from_checkpoint=str(run.folder / "checkpoint-5"))


def test_without_a_chain_the_callback_does_nothing(tmp_path):
    """`cla` with and without it: the same bits."""
    states = []
    for callbacks in ([tunewise.ChainCallback()], []):
        trainer = make_trainer("cla", tmp_path, None, callbacks, save_strategy="no")
        trainer.train()
        states.append(trainer.model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", ["c3la", "c-paca", "cola"])
def test_the_best_checkpoint_of_an_earlier_link_is_loaded_at_the_end(name, tmp_path):
    """`load_best_model_at_end`, where the highest loss is called the best: back in an earlier link, 1e-5."""
    watch = Watch()
    options = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "greater_is_better": True}
    trainer = make_trainer(name, tmp_path, Chain(links=LINKS), [tunewise.ChainCallback(), watch], **options)
    trainer.train()
    best = int(trainer.state.best_model_checkpoint.rpartition("-")[2])
    assert best < 8
    found = models.logits(trainer.model, models.batch("bert"))
    torch.testing.assert_close(found, watch.saved[best], rtol=0, atol=1e-5)
    assert current_link(trainer.model) == best // 4


EPOCHS = {
    "whole epochs": ({"num_train_epochs": 3, "max_steps": -1}, [5, 10]),
    "accumulated": ({"num_train_epochs": 3, "max_steps": -1, "gradient_accumulation_steps": 2}, [3, 6]),
    "part of an epoch": ({"num_train_epochs": 2.4, "max_steps": -1}, [5, 10]),
    "a number of steps": ({"max_steps": 12}, [5, 10]),
}


@pytest.mark.parametrize(
    "case",
    [
        "whole epochs",
        "accumulated",
        "part of an epoch",
        "a number of steps",
    ],
)
def test_a_chain_counted_in_epochs_restarts_where_epochs_end(case, tmp_path):
    """20 examples in batches of 4: five steps an epoch, or three where two batches make a step."""
    options, expected = EPOCHS[case]
    watch = Watch()
    callbacks = [tunewise.ChainCallback(), watch]
    make_trainer("c3la", tmp_path, Chain(every=1), callbacks, save_strategy="no", **options).train()
    assert [step for step in range(1, len(watch.links)) if watch.links[step] != watch.links[step - 1]] == expected


# --- TRL -------------------------------------------------------------------------------------------------------------

SENTENCES = ["the cat sat on the mat", "a dog ran to the tree", "the sun is on the sea", "a bird sang in the tree"] * 4


def tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", *sorted({word for line in SENTENCES for word in line.split()})]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@pytest.mark.parametrize(("kind", "name"), [("gpt2", "c3la"), ("llama-causal", "cola"), ("llama-causal", "c-paca")])
def test_trls_sft_trainer_runs_the_chain(kind, name, tmp_path):
    """With its own defaults (gradient checkpointing among them): three links, a lower loss, a stock adapter to 1e-5."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, watch = tunewise.attach(models.make(kind), name, rank=4, chain=Chain(links=LINKS)), Watch()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(tmp_path),
            max_steps=STEPS,
            per_device_train_batch_size=ROWS,
            learning_rate=2e-2,
            max_length=16,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"text": SENTENCES}),
        processing_class=tiny_tokenizer(),
        callbacks=[tunewise.ChainCallback(), watch],
    )
    trainer.train()
    assert watch.links == [0] * 4 + [1] * 4 + [2] * 4
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.95 * losses[0]
    trainer.save_model(str(tmp_path / "saved"))
    loaded = PeftModel.from_pretrained(models.make(kind), str(tmp_path / "saved"))
    expected = models.logits(trainer.model, models.batch(kind))
    torch.testing.assert_close(models.logits(loaded, models.batch(kind)), expected, rtol=0, atol=1e-5)
