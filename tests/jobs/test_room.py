"""What runs in packs need: no less than is alive at once in a real pack's step, and not much more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tunewise import preflight
from tunewise.errors import NoRoom
from tunewise.jobs.room import in_packs
from tunewise.models.head import Head
from tunewise.models.load import load_config
from tunewise.packing.carrier import Carrier, Member
from tunewise.packing.passes import PASS
from tunewise.packing.streams import Stream
from tunewise.preflight import Wanted, check_room
from tunewise.preview.forecast import forecast
from tunewise.preview.live_memory import LiveMemory
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, TrainingSpec
from tunewise.tasks.build import build_task
from tunewise.training.build import build_model

RUNS, BATCH, LENGTH = 6, 8, 32


def specs(model: Path, data: Path) -> list[RunSpec]:
    return [
        RunSpec(
            model=ModelSpec(path=str(model), digest="m"),
            data=DataSpec(path=str(data), digest="d"),
            method=MethodSpec(name="lora", rank=8, targets="all-linear"),
            training=TrainingSpec(epochs=1, batch_size=BATCH, max_length=LENGTH),
            seed=seed,
        )
        for seed in range(RUNS)
    ]


def alive(runs: list[RunSpec], most: int) -> int:
    """Bytes of tensors made in a step of a real pack, at their peak; its second step, as the first one is checked."""
    task = build_task(runs[0])
    carrier = Carrier(task.load_model(0), "text", most=most)
    members = []
    for run in runs:
        model = build_model(run, task, fold="never").train()
        carrier.share(model)
        members.append(Member(model))
    ids = torch.randint(5, 20, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(BATCH) % 2}
    for _ in range(2):
        with LiveMemory() as live:
            carrier.step(members, [batch] * len(members), [Stream() for _ in members])
    return live.peak


def test_a_pack_needs_what_is_alive_in_one_pass_and_every_runs_own(
    tiny_model: Path, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = specs(tiny_model, toy_csv)
    labels = build_task(runs[0]).labels
    wanted = [Wanted(run, Head("text", tuple(labels)), steps=1, train=100, test=10) for run in runs]
    assert [(one.packed, one.pass_tokens) for one in in_packs(wanted, 4)] == [(4, PASS)] * RUNS
    assert {one.packed for one in in_packs(wanted[:1], 99, trials=5)} == {5}
    assert in_packs(wanted, 1) == wanted
    alone = [replace(one, run=one.run.model_copy(update={"method": MethodSpec(name="fft")})) for one in wanted]
    assert in_packs(alone, 8) == alone

    (found,) = forecast(load_config(runs[0].model), wanted[0].head, [runs[0].method], batch=BATCH, length=LENGTH)
    there = found.weight_bytes + found.optimizer_bytes + (RUNS - 1) * (found.optimizer_bytes + found.disk_bytes)
    needs = []
    for most in (BATCH * LENGTH, 3 * BATCH * LENGTH, 10**6):
        (one, *_) = (replace(each, pass_tokens=most) for each in in_packs(wanted, RUNS))
        need = there + alive(runs, most)
        monkeypatch.setattr(preflight, "available_memory", lambda need=need: int(1.06 * need))
        check_room([one], tmp_path)
        monkeypatch.setattr(preflight, "available_memory", lambda need=need: int(0.97 * need))
        with pytest.raises(NoRoom, match=r"6 runs in a pack\).*pack [31]"):
            check_room([one], tmp_path)
        needs.append(need)
    assert needs[0] < needs[1] < needs[2]
