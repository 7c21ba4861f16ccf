"""`tunewise inspect`, in Python and from the command line: any adapter, any run, two models; and one-line refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from command_line import invoke
from test_run import make_spec
from tiny import save_tiny_model
from tiny_language import save_tiny_llama
from tunewise.errors import MeasureError, ModelError, SpecError, StoreError, TunewiseError
from tunewise.inspecting import inspect
from tunewise.measures._linalg.base_spectra import BaseSpectra
from tunewise.measures.intruders.compute import layer_intruders
from tunewise.measures.updates.folder import updates_of
from tunewise.methods.attach import attach
from tunewise.methods.saving import save
from tunewise.run import run
from tunewise.spec import DataSpec
from tunewise.store.folders import RunStore


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWISE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("inspected") / "model", hidden=64)


@pytest.fixture(scope="module")
def stock(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that PEFT alone made, of a classifier with three classes; it names its base."""
    folder = tmp_path_factory.mktemp("stock") / "adapter"
    return make_adapter(model, folder, LoraConfig(r=3, target_modules=["query", "value"], task_type="SEQ_CLS"))


def make_adapter(model: Path, folder: Path, config: LoraConfig | LoHaConfig, family=AutoModelForSequenceClassification):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {} if family is not AutoModelForSequenceClassification else {"num_labels": 3}
        adapted = get_peft_model(family.from_pretrained(model, **options), config)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name or "hada" in name:
                    parameter.copy_(0.3 * torch.randn_like(parameter))
        adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finished(model: Path, toy_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder."""
    store = RunStore(tmp_path_factory.mktemp("inspected-runs"))
    return store.folder(run(make_spec(model, toy_csv, "lora", learning_rate=2e-2), store).id)


def call(*arguments: str | Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of `tunewise inspect ...`."""
    return invoke(monkeypatch, "inspect", *map(str, arguments))


def test_an_adapter_names_its_base_and_its_form_of_it(stock: Path, model: Path) -> None:
    found = inspect(stock)
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=3)
    updates = updates_of(stock, base)
    assert list(found.spectrum.layers) == list(updates)
    assert found.base == str(model) and found.family == "lora" and found.decomposed == 4
    for name, layer in found.intruders.layers.items():
        expected = layer_intruders(updates[name], BaseSpectra(None).of(updates[name].base))
        assert layer.cosines == pytest.approx(expected.cosines, abs=1e-12)
    assert inspect(stock).decomposed == 0  # kept


@pytest.mark.parametrize("kind", ["encoder", "loha"])
def test_layers_are_found_in_whatever_form_of_the_model_has_them(kind: str, model: Path, tmp_path: Path) -> None:
    if kind == "encoder":
        folder = make_adapter(model, tmp_path / "a", LoraConfig(r=2, target_modules=["query"]), AutoModel)
    else:
        folder = make_adapter(model, tmp_path / "a", LoHaConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    found = inspect(folder, base=str(model))
    prefix = "" if kind == "encoder" else "bert."
    assert list(found.spectrum.layers) == [f"{prefix}encoder.layer.{i}.attention.self.query" for i in range(2)]


def test_a_run_knows_its_base_its_data_and_its_cache(finished: Path) -> None:
    record = RunStore(finished.parent).record(finished.name)
    assert record is not None and record.results is not None
    found = inspect(finished, scale=[0, 1])
    assert found.scaled_intruders[0].loss is not None
    assert found.scaled_intruders[1].loss == pytest.approx(record.results.test.loss, abs=1e-5)
    assert found.scaled_intruders[1].count == found.intruders.count()
    assert found.scaled_on.startswith("the run's test split")
    assert list((finished.parent / "cache" / "base-spectra").iterdir())
    assert record.id in found.of and inspect(finished).decomposed == 0


def test_an_adapter_of_ours_is_called_by_its_method_and_not_by_what_its_files_are(model: Path, tmp_path: Path) -> None:
    """A run by its record, a folder by its own note."""
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=3)
    adapted = attach(base, "cla", rank=2, targets="qv", seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    folder = save(adapted, tmp_path / "adapter")
    found = inspect(folder, base=str(model))
    assert found.family == "cla" and found.spectrum.layers


def test_other_data_is_taken_whole(finished: Path, toy_csv: Path) -> None:
    found = inspect(finished, scale=[1], data=DataSpec(path=str(toy_csv)))
    assert found.scaled_intruders[0].loss is not None and found.scaled_on.endswith("(120)")


def test_a_stock_adapter_is_evaluated_on_data(stock: Path, toy_csv: Path) -> None:
    found = inspect(stock, scale=[1, 0.5], data=DataSpec(path=str(toy_csv)))
    assert all(s.loss is not None for s in found.scaled_intruders) and found.scaled_on.endswith("(120)")


def test_a_language_models_adapter_is_evaluated_on_text(tmp_path: Path) -> None:
    base = save_tiny_llama(tmp_path / "decoder")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    folder = make_adapter(base, tmp_path / "adapter", config, AutoModelForCausalLM)
    text = tmp_path / "stories.csv"
    text.write_text("text\n" + "\n".join(f"the cat and dog number {i} near a horse" for i in range(40)) + "\n")
    found = inspect(folder, scale=[1, 0], data=DataSpec(path=str(text)))
    assert all("perplexity" in s.metrics for s in found.scaled_intruders)


def test_two_models(model: Path, tmp_path: Path) -> None:
    other = AutoModel.from_pretrained(model)
    with torch.no_grad():
        other.encoder.layer[0].attention.self.query.weight.add_(0.01)
    other.save_pretrained(tmp_path / "other")
    found = inspect(base=str(model), model_b=str(tmp_path / "other"))
    changed = [name for name, layer in found.spectrum.layers.items() if layer.values]
    assert changed == ["encoder.layer.0.attention.self.query"] and len(found.spectrum.layers) == 13
    assert found.family == "full model"
    with pytest.raises(SpecError, match="weights alone"):
        inspect(base=str(model), model_b=str(tmp_path / "other"), scale=[1], data=DataSpec(path="x.csv"))


def test_all_vectors_and_another_threshold(stock: Path) -> None:
    found = inspect(stock, top_k=None, threshold=1.0).as_data()
    assert found["intruders"]["top_k"] == "all" and found["intruders"]["vectors"] == 4 * 64
    assert found["intruders"]["count"] == found["intruders"]["curve"]["1.0"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": 1.5}, "threshold"),
        ({"top_k": 0}, "top_k"),
        ({"scale": [-1.0]}, "scale"),
        ({"data": DataSpec(path="x.csv")}, "--scale"),
        ({"model_b": "other"}, "one of the two"),
    ],
)
def test_arguments_that_make_no_sense(options: dict, words: str, stock: Path) -> None:
    with pytest.raises(SpecError, match=words):
        inspect(stock, **options)
    with pytest.raises(SpecError):
        inspect()


def test_wrong_bases_and_damage_are_refused_in_a_line(
    stock: Path, finished: Path, tiny_model: Path, model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    cases: list[tuple[type[TunewiseError], str, dict]] = [
        (StoreError, "does not fit", {"adapter": stock, "base": str(tiny_model)}),
        (StoreError, "another base model", {"adapter": finished, "base": str(tiny_model)}),
        (ModelError, "no such folder", {"adapter": stock, "base": "./nowhere"}),
        (StoreError, "no such folder", {"adapter": tmp_path / "nowhere"}),
        (StoreError, "--model-b", {"adapter": model}),
        (StoreError, "differ in layer", {"base": str(model), "model_b": str(tiny_model)}),
    ]
    nameless = shutil.copytree(stock, tmp_path / "nameless")
    config = json.loads((nameless / "adapter_config.json").read_text())
    (nameless / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    cases.append((SpecError, "--base", {"adapter": nameless}))
    cut = shutil.copytree(stock, tmp_path / "cut")
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    cases.append((StoreError, "can't be read", {"adapter": cut}))
    labels = tmp_path / "labels.csv"
    labels.write_text(toy_csv.read_text().replace("animals", "beasts"))
    cases.append((SpecError, "labels", {"adapter": finished, "scale": [1], "data": DataSpec(path=str(labels))}))
    for kind, words, arguments in cases:
        with pytest.raises(kind) as error:
            inspect(**arguments)
        assert words in str(error.value) and "\n" not in str(error.value)


def test_a_head_alone_has_nothing_to_look_at(model: Path, toy_csv: Path, tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    record = run(make_spec(model, toy_csv, "head", epochs=1), store)
    with pytest.raises(MeasureError, match=r"no weight of the backbone .* Retrained as a whole: classifier \("):
        inspect(store.folder(record.id))


def test_full_fine_tuning_knows_its_base_by_its_files(
    model: Path, tiny_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    from tunewise.models.load import model_digest
    from tunewise.spec import ModelSpec

    store = RunStore(tmp_path / "runs")
    spec = make_spec(model, toy_csv, "fft", epochs=1, learning_rate=1e-4)
    digest = model_digest(ModelSpec(path=str(model)))
    spec = spec.model_copy(update={"model": ModelSpec(path=str(model), digest=digest)})
    folder = store.folder(run(spec, store).id)
    assert len(inspect(folder).spectrum.layers) == 13
    other = shutil.copytree(model, tmp_path / "other")
    weights = AutoModel.from_pretrained(other)
    with torch.no_grad():
        weights.embeddings.word_embeddings.weight.add_(1)
    weights.save_pretrained(other)
    with pytest.raises(StoreError, match="another base model"):
        inspect(folder, base=str(other))


def test_says_which_modules_are_retrained_and_how_many_parameters_they_have(model: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS", modules_to_save=["pooler"])
    found = inspect(make_adapter(model, tmp_path / "adapter", config))
    reference = AutoModelForSequenceClassification.from_pretrained(model, num_labels=3)
    names = {"classifier": reference.classifier, "bert.pooler": reference.bert.pooler}
    expected = {name: sum(p.numel() for p in module.parameters()) for name, module in names.items()}
    assert found.as_data()["retrained"] == {"modules": expected, "tokens": {}}
    assert f"bert.pooler ({64 * 64 + 64:,} parameters)" in found.retrained.describe()[0]


@pytest.mark.parametrize("tokens", [[3, 5, 9], {"embed_tokens": [3, 5, 9]}])
def test_says_which_tokens_are_trained(tokens: list | dict, tmp_path: Path, monkeypatch, capsys) -> None:
    base = save_tiny_llama(tmp_path / "decoder")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", trainable_token_indices=tokens)
    folder = make_adapter(base, tmp_path / "adapter", config, AutoModelForCausalLM)
    width = AutoModelForCausalLM.from_pretrained(base).config.hidden_size
    assert call(folder, "--json", monkeypatch=monkeypatch) == 0
    trained = json.loads(capsys.readouterr().out)["retrained"]
    assert trained["tokens"]["model.embed_tokens"] == {"tokens": [3, 5, 9], "parameters": 3 * width}
    assert not trained["modules"]
    assert call(folder, monkeypatch=monkeypatch) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert f"Trained: 3 tokens of model.embed_tokens ({3 * width:,} parameters): 3, 5, 9." in words


class TestCommandLine:
    def test_tables(self, stock: Path, monkeypatch, capsys) -> None:
        assert call(stock, "--scale", "0,1", monkeypatch=monkeypatch) == 0
        out = capsys.readouterr().out
        assert "0.query" in out and "Intruders by threshold" in out and "Intruders scaled" in out
        assert max(map(len, out.splitlines())) <= 80
        every = inspect(stock)
        assert f"{every.intruders.count()} / 40" in out

    def test_json_alone_on_stdout(self, stock: Path, monkeypatch, capsys) -> None:
        assert call(stock, "--json", "--top-k", "all", "--threshold", "0.5", monkeypatch=monkeypatch) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["intruders"]["top_k"] == "all" and found["intruders"]["threshold"] == 0.5

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["nowhere"], "no such folder"),
            (["{stock}", "--top-k", "many"], "--top-k many"),
            (["{stock}", "--scale", "a,b"], "--scale a,b"),
            (["{stock}", "--threshold", "2"], "threshold"),
            (["{stock}", "--scale", "1", "--data", "x.csv", "--task", "txt"], "unknown task 'txt'"),
            ([], "adapter folder"),
        ],
    )
    def test_one_line_of_error(self, arguments: list[str], words: str, stock: Path, monkeypatch, capsys) -> None:
        filled = [a.format(stock=stock) for a in arguments]
        assert call(*filled, monkeypatch=monkeypatch) != 0
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if line.startswith("error:")]
        assert len(lines) == 1 and words in lines[0] and "Traceback" not in error
