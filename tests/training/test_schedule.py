"""Learning rates: what each step was trained at, as the history records it, and a warm-up that starts above 0."""

from __future__ import annotations

import json

import pytest
import torch

from test_run import make_spec
from tunewise.run import run
from tunewise.store.folders import RunStore
from tunewise.training.trainer import RunTrainer


@pytest.mark.parametrize("schedule", ["linear", "constant", "cosine"])
def test_the_history_has_the_rate_of_each_step_and_no_step_trains_at_zero(
    schedule, tiny_model, toy_csv, tmp_path, monkeypatch
):
    """Against the closed form, and against what the optimizer had when it stepped."""
    used: list[float] = []
    create = RunTrainer.create_optimizer

    def watched(self: RunTrainer, *args: object) -> torch.optim.Optimizer:
        optimizer = create(self, *args)
        optimizer.register_step_pre_hook(lambda o, *_: used.append(o.param_groups[0]["lr"]))
        return optimizer

    monkeypatch.setattr(RunTrainer, "create_optimizer", watched)
    spec = make_spec(tiny_model, toy_csv, "lora", schedule=schedule, warmup_ratio=0.25, learning_rate=8e-3)
    store = RunStore(tmp_path)
    record = run(spec, store)
    lines = map(json.loads, (store.folder(record.id) / "history.jsonl").read_text().splitlines())
    rates = [line["learning_rate"] for line in lines if line["kind"] == "step"]
    assert rates == used
    total = len(rates)
    warm = -(-total // 4)
    assert rates[:warm] == pytest.approx([8e-3 * (k + 1) / warm for k in range(warm)])
    if schedule == "linear":
        assert rates[warm:] == pytest.approx([8e-3 * (total - k) / (total - warm) for k in range(warm, total)])
    if schedule == "constant":
        assert set(rates[warm:]) == {8e-3}
    assert min(rates) > 0
