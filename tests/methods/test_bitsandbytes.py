"""Every method on a base in bf16, in 4 bits and in 8 bits: trained, saved, loaded again by stock PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

import tunewise
from tiny_language import save_tiny_llama
from tunewise.catalog import CATALOG, get_method
from tunewise.errors import ModelError, SpecError
from tunewise.methods.verify import verify
from tunewise.models.head import Head
from tunewise.models.load import load_model
from tunewise.spec import ModelSpec, RunSpec

pytest.importorskip("bitsandbytes")

HEAD = Head("AutoModelForCausalLM", "a causal language model", pretrained=True)
IDS = torch.randint(3, 40, (4, 12), generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}
ADAPTERS = [name for name in CATALOG if CATALOG[name].adapts]
BASES = {
    "bf16": {"dtype": "bfloat16"},
    "nf4": {"dtype": "float32", "quantization": "nf4"},
    "nf4 in bf16": {"dtype": "bfloat16", "quantization": "nf4"},
    "int8": {"dtype": "float32", "quantization": "int8"},
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama") / "model", hidden=64)


def load_base(folder: Path, base: str) -> Any:
    return load_model(ModelSpec.model_validate({"path": str(folder), **BASES[base]}), HEAD, seed=0)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    model.eval()
    result: Tensor = model(**BATCH).logits.float()
    return result


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", ADAPTERS)
def test_every_method_learns_and_stock_peft_loads_it(llama: Path, tmp_path: Path, method: str, base: str) -> None:
    """Attaching changes no logit but LoRA-One's; on the same base stock PEFT has the same logits, in fp32 to 1e-4, and
    in bf16, where sums in another order differ, the same dW to 1e-5."""
    model = load_base(llama, base)
    before = logits(model)
    row = get_method(method)
    options = {"batches": [BATCH]} if row.start == "gradient" else {}
    model = tunewise.attach(model, method, rank=4, targets="all-linear", **options)
    if row.start == "zero":
        assert torch.equal(logits(model), before)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    model.train()
    optimizer = tunewise.optimizer(model, lr=3e-3 if method == "lora+" else 3e-2)
    losses = []
    for step in range(6):
        if step == 3 and row.chain:
            tunewise.restart(model, optimizer)
        optimizer.zero_grad()
        loss = model(**BATCH).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.3, losses
    tunewise.save(model, tmp_path / "adapter")
    check = verify(model, tmp_path / "adapter", load_base(llama, base), BATCH)
    assert check.max_logit_difference < (1e-4 * float(before.abs().max()) if "bf16" not in base else 1.0)


def test_a_damaged_adapter_is_noticed_in_bf16(llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tunewise.attach(load_base(llama, "bf16"), "cla", rank=4, targets="all-linear")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    tunewise.save(model, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "lora_B" in name)
    save_file({**tensors, name: tensors[name] * 1.01}, file)
    with pytest.raises(tunewise.errors.StoreError, match="gives other logits"):
        verify(model, tmp_path / "adapter", load_base(llama, "bf16"), BATCH)


@pytest.mark.parametrize("method", ["lora", "cla"])
def test_an_evaluation_changes_no_gradient_in_4_bits(llama: Path, method: str) -> None:
    """On CPUs with AVX512-BF16 the first forward in eval mode would repack the weights, for good."""

    def gradients(evaluate: bool) -> dict[str, Tensor]:
        model = tunewise.attach(load_base(llama, "nf4 in bf16"), method, rank=4, targets="all-linear")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.01)
        if evaluate:
            logits(model)
        model.train()
        model(**BATCH).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, evaluated = gradients(False), gradients(True)
    assert plain.keys() == evaluated.keys() and plain
    assert all(torch.equal(plain[name], evaluated[name]) for name in plain)


def test_weights_in_4_bits_stay_as_they_are(llama: Path) -> None:
    """Columns are added beside them: the packed bytes are the same after training."""
    model = tunewise.attach(load_base(llama, "nf4"), "paca", rank=4, targets="all-linear")
    packed = {n: p.clone() for n, p in model.named_parameters() if p.dtype == torch.uint8}
    assert len(packed) == 14
    optimizer = tunewise.optimizer(model, lr=1e-2)
    for _ in range(2):
        model(**BATCH).loss.backward()
        optimizer.step()
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in packed.items())


def test_full_fine_tuning_of_quantized_weights_is_refused(llama: Path) -> None:
    with pytest.raises(ModelError, match="quantized"):
        tunewise.attach(load_base(llama, "nf4"), "fft")
    with pytest.raises(SpecError, match="fft trains every weight"):
        RunSpec.model_validate(
            {"model": {"path": "m", "quantization": "nf4"}, "data": {"path": "d"}, "method": {"name": "fft"}}
        )


def test_a_new_head_is_trained_in_fp32_on_a_bf16_base(tiny_model: Path) -> None:
    head = Head(
        "AutoModelForSequenceClassification",
        "a classifier",
        labels=("a", "b"),
        problem_type="single_label_classification",
    )
    base = load_model(ModelSpec(path=str(tiny_model), dtype="bfloat16"), head, seed=0)
    model = tunewise.attach(base, "lora", rank=2)
    assert isinstance(model, PeftModel)
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    assert trained == {torch.float32}
    output = model(input_ids=IDS % 20, labels=torch.tensor([0, 1, 0, 1]))
    assert output.logits.dtype == torch.float32 and torch.isfinite(output.loss)
