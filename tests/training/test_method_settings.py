"""What a method can have of its own in a comparison: weight decay, the law of A; where they act, and in a run's name."""

from __future__ import annotations

import pytest
import torch

from tunewise.errors import SpecError
from tunewise.models.load import load_model
from tunewise.run import run
from tunewise.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, TrainingSpec, parse
from tunewise.store.folders import RunStore
from tunewise.tasks.text import TextClassification
from tunewise.training.build import attach_method


def spec_of(model, data, decay=None, common=0.0, **method):
    return RunSpec(
        model=ModelSpec(path=str(model)),
        data=DataSpec(path=str(data), train_size=16, validation_size=9, test_size=9),
        method=MethodSpec(weight_decay=decay, **method),
        training=TrainingSpec(epochs=1, weight_decay=common, schedule="constant", warmup_ratio=0),
    )


def test_a_methods_own_weight_decay_shrinks_its_weights(tiny_model, toy_csv, tmp_path):
    """One step of AdamW: decay takes rate x decay of each matrix away before the step, which is the same."""
    from safetensors.torch import load_file

    trained, rate = {}, 1e-3
    for decay in (0.0, 100.0):
        record = run(spec_of(tiny_model, toy_csv, decay, name="fft", learning_rate=rate), RunStore(tmp_path))
        [file] = (tmp_path / record.id / "adapter").glob("*.safetensors")
        trained[decay] = load_file(file)
    start = load_model(
        ModelSpec(path=str(tiny_model)), TextClassification.make_head(("a", "b", "c")), seed=0
    ).state_dict()
    name = "bert.encoder.layer.0.attention.self.query.weight"
    found = next(key for key in trained[0.0] if key.endswith(name))
    expected = trained[0.0][found] - rate * 100.0 * start[name]
    torch.testing.assert_close(trained[100.0][found], expected, rtol=1e-5, atol=1e-7)


def test_the_same_decay_is_the_same_run_wherever_it_is_said(tiny_model, toy_csv):
    own = spec_of(tiny_model, toy_csv, 0.1, name="lora")
    assert own.weight_decay == 0.1
    assert own.id == spec_of(tiny_model, toy_csv, None, 0.1, name="lora").id
    assert own.id == spec_of(tiny_model, toy_csv, 0.1, 0.5, name="lora").id
    assert own.id != spec_of(tiny_model, toy_csv, 0.2, name="lora").id


def test_the_law_of_a_reaches_the_adapter(tiny_model, toy_csv):
    found = {}
    for law in (None, "normal"):
        model = load_model(ModelSpec(path=str(tiny_model)), TextClassification.make_head(("a", "b")), seed=0)
        adapted = attach_method(model, MethodSpec(name="asym", rank=8, lora_a_init=law), seed=0)
        found[law] = torch.cat([p.flatten() for n, p in adapted.named_parameters() if ".lora_A." in n])
    assert found["normal"].std() == pytest.approx(0.02, rel=0.1)  # N(0, 0.02^2)
    assert float(found[None].abs().max()) <= 32**-0.5  # Kaiming's uniform law, of 32 inputs
    assert float(found[None].std()) == pytest.approx((1 / 96) ** 0.5, rel=0.1)
    ids = {law: spec_of(tiny_model, toy_csv, name="asym", lora_a_init=law).id for law in (None, "kaiming", "normal")}
    assert ids[None] == ids["kaiming"] != ids["normal"]
    with pytest.raises(SpecError, match="'cla' has no random A"):
        parse(MethodSpec, {"name": "cla", "lora_a_init": "normal"})
