"""Measures of runs on bases in bf16 and in 4 bits: the numbers of the same weights in a plain fp32 model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import nn
from transformers import AutoModelForCausalLM

import tunewise
from test_run import make_spec
from tiny_language import save_tiny_llama
from tunewise.measures.cost.stepping import FLOOR, probe_batch, stepper
from tunewise.measures.finished import FinishedRun, no_check
from tunewise.models.head import Head
from tunewise.models.load import load_model
from tunewise.registry import MEASURES
from tunewise.run import run
from tunewise.spec import ModelSpec, StudySpec
from tunewise.store.folders import RunStore
from tunewise.tasks.build import build_task

bitsandbytes = pytest.importorskip("bitsandbytes")

BASES = {
    "bf16": {"dtype": "bfloat16"},
    "nf4 in bf16": {"dtype": "bfloat16", "quantization": "nf4"},
}
SETTINGS: dict[str, dict[str, int]] = {
    "landscape": {"grid": 3, "batches": 2},
    "sharpness": {"batches": 2, "directions": 2, "eigenvalues": 1, "probes": 1},
}
IN_FP32 = ("spectrum", "intruders", "sharpness", "landscape", "laziness", "bounds")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama") / "model", hidden=64)


def plain(model: Any) -> nn.Module:
    """The weights that the model computes with, by bitsandbytes' own function, as fp32."""
    for name, module in list(model.named_modules()):
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            dense = nn.Linear(module.in_features, module.out_features, bias=False)
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            dense.weight = nn.Parameter(weight.float(), requires_grad=False)
            model.set_submodule(name, dense)
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    return model


def numbers(value: object, name: str = "") -> dict[str, float]:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, dict):
        return {k: v for key in value for k, v in numbers(value[key], f"{name}.{key}").items() if key != "seconds"}
    if isinstance(value, list | tuple):
        return {k: v for i, part in enumerate(value) for k, v in numbers(part, f"{name}[{i}]").items()}
    return {name: float(value)} if isinstance(value, int | float) else {}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", ["c3la", "peft:dora"])
def test_measures_are_those_of_the_plain_fp32_weights(
    method: str, base: str, llama: Path, toy_csv: Path, tmp_path: Path
) -> None:
    """To 1e-4; the bounds to 1 %, since the largest input is that of the network as it runs. And the record counts the weights that are packed."""
    model = ModelSpec.model_validate({"path": str(llama), **BASES[base]})
    spec = make_spec(llama, toy_csv, method).model_copy(update={"model": model})
    record = run(spec, RunStore(tmp_path / "runs"))
    folder = RunStore(tmp_path / "runs").folder(record.id)
    task = build_task(record.spec)
    reference_task = copy.copy(task)
    reference_task.load_model = lambda seed: plain(task.load_model(seed))  # type: ignore[method-assign]
    own = FinishedRun(record, folder, task, tmp_path / "a")
    reference = FinishedRun(record, folder, reference_task, tmp_path / "b")
    for name in IN_FP32:
        tolerance = 1e-2 if name == "bounds" else 1e-4
        measure = MEASURES.get(name)
        settings = measure.parse_settings(SETTINGS.get(name, {}))
        found, expected = (numbers(measure.compute(one, settings, no_check)) for one in (own, reference))
        assert found.keys() == expected.keys()
        far = {
            k: (found[k], expected[k])
            for k in found
            if abs(found[k] - expected[k]) > tolerance * (1 + abs(expected[k]))
        }
        assert not far, (name, far)
    assert record.model is not None
    assert record.model.parameters == sum(p.numel() for p in reference.base.parameters())


@pytest.mark.parametrize("base", BASES)
def test_a_merged_model_is_that_of_the_plain_weights(base: str, llama: Path, tmp_path: Path) -> None:
    """W0 as the model computes with it, plus dW, rounded once to bf16."""
    head = Head("AutoModelForCausalLM", "a causal language model", pretrained=True)
    spec = ModelSpec.model_validate({"path": str(llama), **BASES[base]})
    model = tunewise.attach(load_model(spec, head, seed=0), "cla", rank=4, targets="all-linear")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    tunewise.save(model, tmp_path / "adapter")
    batch = {"input_ids": torch.arange(3, 23).view(2, 10), "attention_mask": torch.zeros(2, 1, 10, 10).bfloat16()}
    tunewise.export(
        tmp_path / "adapter", "merged", tmp_path / "merged", base=load_model(spec, head, seed=0), batch=batch
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    start, merged_weights = plain(load_model(spec, head, seed=0)), dict(merged.named_parameters())
    assert merged.dtype == torch.bfloat16
    assert not hasattr(merged.config, "quantization_config")
    for name, dense in tunewise.delta(model).items():
        expected = start.get_submodule(name).weight + dense
        assert torch.equal(merged_weights[f"{name}.weight"], expected.to(torch.bfloat16)), name


@pytest.mark.parametrize("base", BASES)
def test_the_frozen_floor_trains_a_bias_alone(base: str, llama: Path, toy_csv: Path) -> None:
    content = {"model": {"path": str(llama), **BASES[base]}, "data": {"path": str(toy_csv)}, "methods": ["lora"]}
    study = StudySpec.model_validate(content)
    task = build_task(study)
    floor = stepper(FLOOR, study, task, probe_batch(study, task))
    biases = {name: p for name, p in floor.model.named_parameters() if p.requires_grad and name.endswith("bias")}
    assert len(biases) == 1
    floor.step()
    assert all(bool(p.any()) for p in biases.values())
