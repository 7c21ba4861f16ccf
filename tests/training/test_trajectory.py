"""Snapshots give back each moment of a training to the last bit, and the training does not notice them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments

import tunewise
from contracts import models
from tunewise import CATALOG, Chain
from tunewise.errors import StoreError
from tunewise.run import run
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, TrainingSpec
from tunewise.store.folders import RunStore
from tunewise.training.events import Interrupted, Listener, StepDone
from tunewise.training.trajectory import TRAJECTORY, SnapshotOptions, explain_missing, snapshot_steps, snapshots

STEPS = 9
METHODS = [*CATALOG, "peft:dora"]


class Watch(TrainerCallback):
    """What the model is after every step, kept as dense tensors: the reference."""

    def __init__(self, base: Any) -> None:
        self.base = base
        self.seen: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.on_step_end(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        self.seen[state.global_step] = look(kwargs["model"], self.base)


def look(model: Any, base: Any) -> dict[str, torch.Tensor]:
    """dW of all layers, the trained tensors and the logits."""
    trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    with torch.random.fork_rng(devices=[]):
        return {**tunewise.delta(model, base), **trained, "logits": models.logits(model, models.batch("bert"))}


def attached(name: str) -> Any:
    options: dict[str, Any] = {"batches": [models.batch("bert")]} if name == "lora-one" else {}
    chain = Chain(links=3) if name in CATALOG and CATALOG[name].chain else None
    return tunewise.attach(models.make("bert", dropout=0.1), name, rank=4, chain=chain, **options)


def examples(count: int = 12) -> list[dict[str, torch.Tensor]]:
    whole = models.batch("bert", rows=count, seed=2)
    return [{key: value[i] for key, value in whole.items()} for i in range(count)]


def trainer(model: Any, folder: Path, callbacks: list[Any], **options: Any) -> Trainer:
    arguments = {"max_steps": STEPS, "save_strategy": "no", "learning_rate": 1e-2, **options}
    return Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder / "checkpoints"),
            per_device_train_batch_size=4,
            report_to="none",
            disable_tqdm=True,
            **arguments,
        ),
        train_dataset=examples(),
        callbacks=callbacks,
    )


def freeze(model: Any) -> Any:
    return model.requires_grad_(False)


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", METHODS)
def test_every_snapshot_gives_that_moment_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    """In a Trainer of one's own; restored backwards and forwards into one model, chains with all their links."""
    watch = Watch(models.make("bert", dropout=0.1))
    keep = tunewise.TrajectoryCallback(tmp_path, snapshots=4, full=True)
    trainer(attached(name), tmp_path, [tunewise.ChainCallback(), keep, watch]).train()
    kept = tunewise.snapshots(tmp_path)
    assert [one.step for one in kept] == [0, 2, 4, 7, 9]
    again = attached(name)
    for snapshot in [*reversed(kept), *kept]:
        snapshot.restore(again)
        assert same(look(again, watch.base), watch.seen[snapshot.step])
    assert not same(watch.seen[4], watch.seen[7])


def test_a_snapshot_is_about_as_large_as_what_is_trained(tmp_path: Path) -> None:
    model = attached("r-c3la")
    trainer(model, tmp_path, [tunewise.ChainCallback(), tunewise.TrajectoryCallback(tmp_path, 3)]).train()
    first, *_, last = snapshots(tmp_path)
    trained = 4 * tunewise.trainable_parameters(model)
    assert first.path.stat().st_size < trained + 4000
    assert last.path.stat().st_size < 3 * trained + 8000  # two finished links stand beside the active one


def test_a_plain_peft_model_keeps_its_trained_tensors(tmp_path: Path) -> None:
    def make(*targets: str) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = LoraConfig(r=2, target_modules=list(targets), task_type="SEQ_CLS")
            return get_peft_model(models.make("bert"), config)

    model, again = make("query"), make("query")
    trainer(model, tmp_path, [tunewise.TrajectoryCallback(tmp_path, 2)]).train()
    snapshots(tmp_path)[-1].restore(again)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(StoreError, match="does not fit this model: it has no base_model.*value"):
        snapshots(tmp_path)[-1].restore(make("query", "value"))
    with pytest.raises(StoreError, match=r"does not fit this model: base_model.*query.* is not in the model"):
        snapshots(tmp_path)[-1].restore(freeze(make("value")))


def test_full_fine_tuning_keeps_nothing_unless_asked(tmp_path: Path) -> None:
    trainer(attached("fft"), tmp_path, [tunewise.TrajectoryCallback(tmp_path, 2)]).train()
    assert snapshots(tmp_path) == []
    assert not list(tmp_path.glob("step-*"))


def test_a_training_that_ends_early_keeps_its_end(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 5

    trainer(attached("lora"), tmp_path, [tunewise.TrajectoryCallback(tmp_path, 3), Stop()]).train()
    assert [one.step for one in snapshots(tmp_path)] == [0, 3, 5]


def test_damaged_foreign_and_unfitting_snapshots_are_named(tmp_path: Path) -> None:
    trainer(attached("lora"), tmp_path, [tunewise.TrajectoryCallback(tmp_path, 2)]).train()
    first, middle, last = snapshots(tmp_path)
    with pytest.raises(StoreError, match="is of lora, rank 4, seed 0, and this model has cla-rows, rank 4, seed 0"):
        first.restore(attached("cla-rows"))
    with pytest.raises(StoreError, match="is of lora, rank 4, seed 0, and this model has no method"):
        first.restore(models.make("bert"))
    content = bytearray(middle.path.read_bytes())
    content[-1] ^= 1
    middle.path.write_bytes(content)
    with pytest.raises(StoreError, match="not as it was written"):
        middle.restore(attached("lora"))
    last.path.unlink()
    with pytest.raises(StoreError, match="can't be read"):
        last.restore(attached("lora"))
    (tmp_path / "trajectory.json").write_text("{")
    with pytest.raises(StoreError, match="can't be read"):
        snapshots(tmp_path)


def test_moments_are_even_and_hold_both_ends() -> None:
    assert snapshot_steps(100, 4) == [0, 25, 50, 75, 100]
    assert snapshot_steps(3, 20) == [0, 1, 2, 3]
    assert snapshot_steps(1000, 20)[::20] == [0, 1000]


def test_what_to_do_about_a_missing_trajectory() -> None:
    assert "add --trajectory 20 to train" in explain_missing("lora")
    assert "add --trajectory 20 --trajectory-full to train" in explain_missing("fft")


# --- within a run ------------------------------------------------------------------------------------------------


def spec_of(model: Path, data: Path, method: str) -> RunSpec:
    training = {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3, "max_length": 16, "save_every": 5}
    return RunSpec(
        model=ModelSpec(path=str(model)),
        data=DataSpec(path=str(data)),
        method=MethodSpec(name=method, rank=4),
        training=TrainingSpec(**training),
    )


class StopAt(Listener):
    def __init__(self, step: int) -> None:
        self.step = step

    def on(self, event: Any) -> None:
        if isinstance(event, StepDone) and event.step == self.step:
            self.stop_requested = True


def files(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted((folder / TRAJECTORY).iterdir())}


@pytest.mark.parametrize("method", ["c-paca", "cola"])
def test_runs_with_and_without_and_stopped_are_the_same_bit_for_bit(
    method: str, tiny_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    spec = spec_of(tiny_model, toy_csv, method)
    without = run(spec, RunStore(tmp_path / "without"))
    store = RunStore(tmp_path / "with")
    kept = run(spec, store, trajectory=SnapshotOptions(6))
    assert kept.results == without.results
    assert kept.files == without.files
    steps = [one.step for one in snapshots(store.folder(spec.id) / TRAJECTORY)]
    assert steps[0] == 0
    assert len(steps) == 7

    parts = RunStore(tmp_path / "parts")
    with pytest.raises(Interrupted):
        run(spec, parts, trajectory=SnapshotOptions(6), listener=StopAt(13))
    folder = parts.folder(spec.id)
    assert [one.step for one in snapshots(folder / TRAJECTORY)][-1] == 13  # where it stopped; not one of the moments
    (folder / TRAJECTORY / ".step-000015.safetensors.x").write_bytes(b"half")
    resumed = run(spec, parts, trajectory=SnapshotOptions(6))
    assert resumed.results == without.results
    assert files(folder) == files(store.folder(spec.id))


def test_snapshots_after_the_checkpoint_are_made_anew(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    """A kill between a snapshot and the next checkpoint: what is on disk is of a future that did not happen yet."""
    spec = spec_of(tiny_model, toy_csv, "r-c3la")
    whole, store = RunStore(tmp_path / "whole"), RunStore(tmp_path / "killed")
    run(spec, whole, trajectory=SnapshotOptions(6))
    with pytest.raises(Interrupted):
        run(spec, store, trajectory=SnapshotOptions(6), listener=StopAt(10))
    folder = store.folder(spec.id)
    future = json.loads((folder / TRAJECTORY / "trajectory.json").read_text())
    future["snapshots"]["step-000012.safetensors"] = {"step": 12, "sha256": "of a file cut short"}
    (folder / TRAJECTORY / "trajectory.json").write_text(json.dumps(future))
    (folder / TRAJECTORY / "step-000012.safetensors").write_bytes(b"cut short")
    run(spec, store, trajectory=SnapshotOptions(6))
    assert files(folder) == files(whole.folder(spec.id))


def test_a_run_begun_without_a_trajectory_begins_anew_for_one(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    spec = spec_of(tiny_model, toy_csv, "lora")
    whole, store = RunStore(tmp_path / "whole"), RunStore(tmp_path / "begun")
    run(spec, whole, trajectory=SnapshotOptions(3))
    with pytest.raises(Interrupted):
        run(spec, store, listener=StopAt(10))
    run(spec, store, trajectory=SnapshotOptions(3))
    assert files(store.folder(spec.id)) == files(whole.folder(spec.id))


def test_a_finished_run_that_lacks_the_snapshots_asked_for_is_trained_once_more(
    tiny_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    spec, store = spec_of(tiny_model, toy_csv, "cla"), RunStore(tmp_path)
    first = run(spec, store)
    assert not (store.folder(spec.id) / TRAJECTORY).exists()
    second = run(spec, store, trajectory=SnapshotOptions(3))
    assert (second.results, second.files) == (first.results, first.files)
    assert len(snapshots(store.folder(spec.id) / TRAJECTORY)) == 4
    third = run(spec, store, trajectory=SnapshotOptions(3))
    assert third == second  # it has one now
