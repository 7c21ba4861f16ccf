"""The floor and the marks of real runs, in what the commands print and write."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tiny_language import save_tiny_llama, save_toy_lines
from tunewise.run import run
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, TrainingSpec
from tunewise.store.folders import RunStore
from tunewise.tasks.build import build_task


def test_the_faults_of_runs_are_seen_wherever_they_are_shown(
    tiny_model: Path, toy_csv: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    """lora at a rate that trains nothing, the head at its default rate."""
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        json.dumps(
            {
                "model": str(tiny_model),
                "data": str(toy_csv),
                "methods": [{"name": "lora", "learning_rate": 1e-9}, "head"],
                "seeds": 2,
                "tuning": 0,
                "measures": "none",
                "training": {"epochs": 2, "batch_size": 16, "max_length": 16},
            }
        )
    )
    code, out, _ = call("compare", "--spec", spec, "--out", tmp_path / "runs", "--no-costs")
    assert code == 0
    shown = " ".join(out.split())
    assert "no learning" in shown and "the best constant" in shown
    assert "loss never fell: in most runs" in shown and "untuned rate: the learning rate is a default" in shown
    assert "The evidence is thin: " in shown and "an untuned default" in shown
    _, out, _ = call("recommend", tmp_path / "runs", "--json")
    content = json.loads(out)
    marks = {row["method"]: row["marks"] for row in content["methods"]}
    assert "loss never fell" in marks["lora"] and "untuned rate" not in marks["lora"]
    assert "untuned rate" in marks["head"]
    assert {"loss never fell", "untuned rate"} <= content["marks"].keys()
    record = RunStore(tmp_path / "runs").records()[0]
    commonest = max(sum(row) for row in record.results.confusion) / record.results.test.examples
    assert content["floor"] == {"score": commonest, "of": "best constant prediction"}
    page = next((tmp_path / "runs").glob("compare-*/report.html")).read_text(encoding="utf-8")
    assert (
        "no learning" in page and "loss never fell" in page and "untuned rate: the learning rate is a default" in page
    )
    _, out, _ = call("report", tmp_path / "runs", "--out", tmp_path / "table.md")
    assert "| no learning |" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_the_floor_of_a_perplexity_is_that_of_the_untrained_model(tmp_path: Path) -> None:
    """Recomputed by transformers' own loss, a text at a time."""
    spec = RunSpec(
        task="causal",
        model=ModelSpec(path=str(save_tiny_llama(tmp_path / "llama"))),
        data=DataSpec(path=str(save_toy_lines(tmp_path / "lines.txt"))),
        method=MethodSpec(name="lora", rank=2, learning_rate=1e-2),
        training=TrainingSpec(epochs=2, batch_size=8, max_length=16),
    )
    record = run(spec, RunStore(tmp_path / "runs"))
    model = AutoModelForCausalLM.from_pretrained(spec.model.path).eval()
    loss = tokens = 0.0
    for example in build_task(spec).test:
        ids = torch.tensor([example["input_ids"]])
        with torch.no_grad():
            loss += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    floor = record.results.floor["perplexity"]
    assert floor.of == "untrained model"
    assert math.isclose(floor.score, math.exp(loss / tokens), rel_tol=1e-5)
    assert record.results.floor["token_accuracy"].of == "untrained model"
    assert record.results.test.metrics["perplexity"] < floor.score
    assert [epoch.validation for epoch in record.results.epochs] == [
        json.loads(line)["validation"]["loss"]
        for line in (tmp_path / "runs" / record.id / "history.jsonl").read_text().splitlines()
        if '"kind": "epoch"' in line
    ]
