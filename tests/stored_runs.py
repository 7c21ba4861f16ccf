"""Run folders as `tunewise.run` leaves them, made in a millisecond: real files with real checksums, no training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, TrainingSpec
from tunewise.store.folders import RunStore
from tunewise.store.records import DataFacts, Environment, ModelFacts, Results, RunRecord, Scores

MODEL, DATA = "a" * 64, "b" * 64


def stored_spec(method: str = "lora", seed: int = 0, *, model: str = "models/base", digest: str = MODEL, **training):
    return RunSpec(
        model=ModelSpec(path=model, digest=digest),
        data=DataSpec(path="toys.csv", digest=DATA),
        method=MethodSpec(name=method, rank=4),
        training=TrainingSpec(epochs=2, **training),
        seed=seed,
        default_rate=1e-2,
    )


def record_of(spec: RunSpec, status: str = "done", accuracy: float = 0.9, seconds: float = 12.5) -> RunRecord:
    """A record without files."""
    results = Results(
        metric="accuracy",
        selected_epoch=2,
        selected_by="lowest validation loss",
        train=Scores(loss=0.1, metrics={"accuracy": 0.99}, examples=100),
        validation=Scores(loss=0.2, metrics={"accuracy": accuracy}, examples=20),
        test=Scores(loss=0.3, metrics={"accuracy": accuracy}, examples=30),
        confusion=[[14, 1], [1, 14]],
    )
    return RunRecord(
        id=spec.id,
        status=status,
        spec=spec,
        environment=Environment(
            tunewise="0.1", python="3.11", platform="any", device="cpu: toy", versions={"torch": "2"}
        ),
        started=f"2026-01-01T00:00:{spec.seed % 60:02d}+00:00",
        seconds=seconds,
        model=ModelFacts(parameters=1000, trainable=64, adapter=60, head=4, layers=["q", "v"]),
        data=DataFacts(train=100, validation=20, test=30, labels=["no", "yes"]),
        results=results if status == "done" else None,
        error=None if status == "done" else f"it {status}",
    )


def write_run(root: Path, spec: RunSpec, **facts: object) -> RunRecord:
    """A finished run, with its adapter, history and predictions."""
    store = RunStore(root)
    folder = store.folder(spec.id)
    (folder / "adapter").mkdir(parents=True)
    save_file({"a": np.full((4, 8), spec.seed, np.float32)}, folder / "adapter" / "adapter_model.safetensors")
    (folder / "adapter" / "tunewise.json").write_text('{"method": "lora"}\n')
    lines = [{"kind": "step", "step": 1, "loss": 0.5}, {"kind": "epoch", "step": 1, "epoch": 1}]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    np.savez(folder / "predictions.npz", logits=np.zeros((30, 2)), labels=np.zeros(30, int))
    record = record_of(spec, **facts).model_copy(update={"files": store.checksums(spec.id)})
    store.write(record)
    return record


def write_unfinished(root: Path, spec: RunSpec, *, checkpoint: bool) -> Path:
    """What a killed run leaves: a history, and a checkpoint if it got that far."""
    folder = RunStore(root).folder(spec.id)
    folder.mkdir(parents=True)
    (folder / "history.jsonl").write_text('{"kind": "step", "step": 1, "loss": 0.5}\n')
    if checkpoint:
        (folder / "checkpoints" / "checkpoint-5").mkdir(parents=True)
        (folder / "checkpoints" / "checkpoint-5" / "model.safetensors").write_bytes(b"x" * 1000)
    return folder
