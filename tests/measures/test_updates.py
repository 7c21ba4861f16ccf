"""dW of every kind of adapter folder is what merging it by PEFT leaves, and the base model is not touched."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2Model

import tunewise
from tunewise.catalog import CATALOG, get_method
from tunewise.errors import StoreError
from tunewise.measures.updates.folder import adapter_folder, backbone_layers, updates_between, updates_of
from tunewise.measures.updates.layer import LayerUpdate, weight_of
from tunewise.models.layers import linear_layers
from tunewise.peft_methods import PEFT_METHODS

IDS = torch.randint(0, 60, (6, 9), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
# Methods whose dW has factors; of the others it is dense.
FACTORED = {*CATALOG, "peft:lora", "peft:orthogonal", "peft:adalora"} - {"fft", "head"}
CHAINS = [name for name, method in CATALOG.items() if method.chain]


@pytest.fixture(scope="module")
def bert() -> BertForSequenceClassification:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            vocab_size=60,
            num_labels=3,
        )
        return BertForSequenceClassification(config).eval()


@pytest.fixture(autouse=True)
def untouched(bert: nn.Module) -> Iterator[None]:
    """Whatever a test does with the base model: not a bit, a flag or a module of it changes."""
    values = {name: tensor.clone() for name, tensor in bert.state_dict().items()}
    tree = [(name, type(module)) for name, module in bert.named_modules()]
    flags = [(name, p.requires_grad) for name, p in bert.named_parameters()]
    yield
    assert all(torch.equal(tensor, values[name]) for name, tensor in bert.state_dict().items())
    assert tree == [(name, type(module)) for name, module in bert.named_modules()]
    assert flags == [(name, p.requires_grad) for name, p in bert.named_parameters()]


def train(base: nn.Module, name: str, **options) -> nn.Module:
    """A copy of the model with the method on it, all that it trains moved, and for a chain a link behind it."""
    if name == "peft:adalora":
        options["peft_options"] = {"total_step": 50}
    if name == "lora-one":
        options["batches"] = [{"input_ids": IDS, "labels": LABELS}]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = tunewise.attach(
            copy.deepcopy(base), name, rank=None if get_method(name).refuses_rank else 4, seed=1, **options
        )
        for _ in range(2 if name in CHAINS else 1):
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(0.05 * torch.randn_like(parameter))
            optimizer.step()  # column methods fold after a step
            if name in CHAINS and tunewise.attachment(model).method.chain and model.__dict__.pop("first", True):
                model.__dict__["first"] = False
                tunewise.restart(model, optimizer)
    return model


def merged_minus_base(folder: Path, base: nn.Module) -> dict[str, Tensor]:
    """The reference: the saved folder loaded by stock PEFT onto a fresh copy, merged, minus the pretrained weight."""
    from peft import PeftModel

    merged = PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).merge_and_unload()
    before, after = linear_layers(base), linear_layers(merged)
    return {name: (weight_of(after[name]) - weight_of(before[name])).double() for name in before if name in after}


@pytest.mark.parametrize("name", [*CATALOG, *(f"peft:{n}" for n in PEFT_METHODS)])
def test_is_what_merging_leaves(name: str, bert: nn.Module, tmp_path: Path) -> None:
    folder = tunewise.save(train(bert, name), tmp_path / "adapter")
    if name == "peft:ln_tuning":
        with pytest.raises(StoreError, match="changes no linear layer's weight"):
            updates_of(folder, bert)
        return
    generator = torch.get_rng_state()
    updates = updates_of(folder, bert)
    assert torch.equal(generator, torch.get_rng_state())
    if name == "head":
        assert not updates
        return
    if name == "fft":
        changed = load_file(folder / "changed.safetensors")
        expected = {
            n: (changed[f"{n}.weight"] - m.weight).double() for n, m in linear_layers(bert).items() if n != "classifier"
        }
        assert list(updates) == list(expected)  # all but the task head
    else:
        expected = merged_minus_base(folder, bert)
        assert len(updates) == 4
    for layer, update in updates.items():
        # the reference adds to an fp32 weight: its own rounding
        tolerance = 5e-7 * float(weight_of(linear_layers(bert)[layer]).abs().max() + expected[layer].abs().max())
        assert float((update.delta() - expected[layer]).abs().max()) < tolerance
        assert float(expected[layer].abs().max()) > 100 * tolerance  # there is something to compare
        assert update.has_factors == (name in FACTORED)
        values = torch.linalg.svdvals(update.delta())
        own = update.singular_values()
        assert (own - values[: len(own)]).abs().max() < 1e-12
        assert values[len(own) :].sum() < 1e-12
        assert update.spectral_norm() == pytest.approx(float(values[0]), rel=1e-12)
        assert update.frobenius_norm() == pytest.approx(float(update.delta().norm()), rel=1e-12)


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_has_all_its_links(name: str, bert: nn.Module, tmp_path: Path) -> None:
    model = train(bert, name)
    updates = updates_of(tunewise.save(model, tmp_path / "adapter"), bert)
    assert {u.rank_bound for u in updates.values()} == {8}
    for layer, delta in tunewise.delta(model).items():
        assert (updates[layer].delta() - delta).abs().max() < 1e-7


def test_columns_touched_twice_are_added_up() -> None:
    base = nn.Linear(6, 5, bias=False)
    left = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    right = torch.zeros(3, 6)
    right[0, 4] = right[1, 1] = 1
    right[2, 4] = -2
    update = LayerUpdate.of_factors("layer", base, left, right)
    assert update.columns is not None and update.columns.tolist() == [1, 4]
    assert (update.delta() - left.double() @ right.double()).abs().max() < 1e-15
    assert (update.singular_values() - torch.linalg.svdvals(left @ right)[:2]).abs().max() < 1e-6


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"rank_pattern": {"query": 5, "layer.1.attention.self.value": 2}, "alpha_pattern": {"value": 11}},
        {"target_modules": "all-linear"},
        {"use_dora": True, "rank_pattern": {"value": 2}},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"bias": "lora_only"},
        {"target_modules": ["query", "word_embeddings"]},
        {"modules_to_save": ["classifier"], "task_type": "SEQ_CLS"},
        {"use_bdlora": None},
    ],
    ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()),
)
def test_any_lora_made_by_peft_alone(options: dict, bert: nn.Module, tmp_path: Path) -> None:
    options = {k: v for k, v in options.items() if v is not None}
    config = LoraConfig(**{"r": 3, "lora_alpha": 7, "target_modules": ["query", "value"], **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = get_peft_model(copy.deepcopy(bert), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name and "magnitude" not in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path, save_embedding_layers=False)
        torch.manual_seed(0)  # PiSSA's fast start is drawn anew at every load
        expected = merged_minus_base(tmp_path, bert)
    updates = updates_of(tmp_path, bert)
    touched = {name for name, delta in expected.items() if float(delta.abs().max()) > 1e-3}
    assert set(updates) == touched
    assert updates.left_out == (["bert.embeddings.word_embeddings"] if "word" in str(options) else [])
    for name, update in updates.items():
        assert (update.delta() - expected[name]).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["lora", "cla", "peft:dora", "fft"])
def test_conv1d_layers_are_out_by_in(name: str, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=32, vocab_size=50)).eval()
    options = {} if name == "fft" else {"targets": "qv" if name == "lora" else ["c_fc", "c_attn"]}
    folder = tunewise.save(train(base, name, **options), tmp_path / "adapter")
    updates = updates_of(folder, base)
    if name == "fft":
        changed = load_file(folder / "changed.safetensors")
        expected = {n: (changed[f"{n}.weight"] - m.weight).T for n, m in linear_layers(base).items()}
    else:
        expected = merged_minus_base(folder, base)
    assert updates["h.0.attn.c_attn"].shape == (96, 32)
    for layer, update in updates.items():
        assert update.delta().shape == update.base.shape == update.shape
        assert (update.delta() - expected[layer]).abs().max() < 1e-6
    if name == "lora":  # q and v alone
        assert not updates["h.0.attn.c_attn"].delta()[32:64].any()


def test_two_full_models(bert: nn.Module) -> None:
    other = copy.deepcopy(bert)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01)
    updates = updates_between(bert, other)
    assert list(updates) == list(backbone_layers(bert)) and "classifier" not in updates
    assert all((u.delta() - 0.01).abs().max() < 1e-7 for u in updates.values())
    small = copy.deepcopy(bert)
    small.bert.encoder.layer[1].output.dense = nn.Linear(128, 63)
    with pytest.raises(StoreError, match="layer.1.output.dense"):
        updates_between(bert, small)


def test_a_runs_folder_stands_for_its_adapter(bert: nn.Module, tmp_path: Path) -> None:
    tunewise.save(train(bert, "lora"), tmp_path / "run" / "adapter")
    assert adapter_folder(tmp_path / "run") == tmp_path / "run" / "adapter"
    assert len(updates_of(tmp_path / "run", bert)) == 4


class TestRefusals:
    """One line each: what, where, the way out."""

    def refused(self, folder: Path, base: nn.Module, *words: str) -> None:
        with pytest.raises(StoreError) as error:
            updates_of(folder, base)
        message = str(error.value)
        assert "\n" not in message and len(message) < 600
        for word in words:
            assert word in message

    @pytest.fixture
    def adapter(self, bert: nn.Module, tmp_path: Path) -> Path:
        return tunewise.save(train(bert, "lora"), tmp_path / "adapter")

    def test_no_folder_and_no_adapter(self, bert: nn.Module, tmp_path: Path) -> None:
        self.refused(tmp_path / "nowhere", bert, "no such folder")
        self.refused(tmp_path, bert, "adapter_config.json", "not an adapter folder")
        (tmp_path / "config.json").write_text("{}")
        self.refused(tmp_path, bert, "full model", "--model-b")

    def test_other_weights(self, adapter: Path, bert: nn.Module) -> None:
        other = copy.deepcopy(bert)
        with torch.no_grad():
            other.bert.encoder.layer[0].attention.self.query.weight.add_(0.1)
        self.refused(adapter, other, "another base model")

    def test_other_shapes(self, adapter: Path, bert: nn.Module) -> None:
        config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=60)
        other = BertForSequenceClassification(config)
        (adapter / "tunewise.json").unlink()  # as any other tool would have left it
        self.refused(adapter, other, "does not fit this model")

    def test_other_layers(self, adapter: Path) -> None:
        (adapter / "tunewise.json").unlink()
        self.refused(adapter, GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=2)), "does not fit this model")
        self.refused(adapter, nn.Sequential(nn.Linear(3, 3)), "does not fit this model")

    def test_fewer_layers_in_the_file(self, adapter: Path, bert: nn.Module) -> None:
        file = adapter / "adapter_model.safetensors"
        tensors = load_file(file)
        del tensors[next(key for key in tensors if "lora_A" in key)]
        save_file(tensors, file)
        self.refused(adapter, bert, "lora_A", "missing")

    @pytest.mark.parametrize("name", ["lora", "cla", "peft:loha"])
    def test_not_finite(self, name: str, bert: nn.Module, tmp_path: Path) -> None:
        folder = tunewise.save(train(bert, name), tmp_path / "a")
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        key = next(key for key in tensors if ".query." in key)
        tensors[key][0, 0] = float("nan")
        save_file(tensors, file)
        self.refused(folder, bert, "NaN")

    def test_damaged_files(self, adapter: Path, bert: nn.Module) -> None:
        weights = adapter / "adapter_model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-7])
        self.refused(adapter, bert, "adapter_model.safetensors", "can't be read")
        weights.unlink()
        self.refused(adapter, bert, "holds no adapter_model.safetensors")
        (adapter / "adapter_model.bin").write_bytes(b"x")
        self.refused(adapter, bert, "pickle")
        (adapter / "adapter_config.json").write_text("{")
        self.refused(adapter, bert, "adapter_config.json", "can't be read")
        (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "NEWEST", "r": 3}))
        self.refused(adapter, bert, "adapter_config.json", "can't be read")

    def test_what_changes_no_weights(self, bert: nn.Module, tmp_path: Path) -> None:
        config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
        get_peft_model(copy.deepcopy(bert), config).save_pretrained(tmp_path)
        self.refused(tmp_path, bert, "PROMPT_TUNING", "changes no weights")
