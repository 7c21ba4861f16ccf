"""A checkpoint that has a task head: its classes are matched by name, and a head of other classes is drawn anew."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMultipleChoice,
    BertForSequenceClassification,
    BertForTokenClassification,
    RobertaConfig,
)
from transformers import RobertaForSequenceClassification as Roberta

from tiny import save_tiny_model
from tunewise.models.head import Head
from tunewise.models.load import checkpoint_head, load_model
from tunewise.spec import DataSpec, ModelSpec
from tunewise.tasks.text import TextClassification

CLASS = "AutoModelForSequenceClassification"
INPUT = {"input_ids": torch.tensor([[2, 5, 9, 3]])}


def head_of(*labels, problem_type="single_label_classification"):
    return Head(CLASS, "a classifier", labels=labels, problem_type=problem_type)


@pytest.fixture
def save(tmp_path):
    """Saves a classifier with these classes (their names in order) as a checkpoint; returns its spec and logits."""

    def save(*names, **options):
        save_tiny_model(tmp_path)
        config = BertConfig.from_pretrained(tmp_path, num_labels=len(names) or 1, **options)
        if names:
            config.id2label, config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
        torch.manual_seed(3)
        model = BertForSequenceClassification(config).eval()
        model.classifier.bias.data.normal_()
        model.save_pretrained(tmp_path)
        with torch.no_grad():
            return ModelSpec(path=str(tmp_path)), model(**INPUT).logits, model.classifier.weight.detach()

    return save


def logits(model):
    with torch.no_grad():
        return model.eval()(**INPUT).logits


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("pos", "neg"), ("neg", "pos")),
        (("c", "a", "b"), ("a", "b", "c")),
        (("POS", "Neg"), ("neg", "pos")),
        (("LABEL_0", "LABEL_1"), ("0", "1")),
        (("2", "0", "1"), ("0", "1", "2")),
    ],
)
def test_classes_of_the_same_names_keep_their_outputs_in_the_order_of_the_data(save, names, labels):
    spec, before, _ = save(*names)
    places = [[n.lower().removeprefix("label_") for n in names].index(label) for label in labels]
    for seed in (0, 1):
        torch.testing.assert_close(logits(load_model(spec, head_of(*labels), seed=seed)), before[:, places])


@pytest.mark.parametrize(
    "head",
    [head_of("politics", "sports"), head_of("0", "1"), Head(CLASS, "a number", problem_type="regression")],
    ids=["other classes", "unnamed classes", "a number"],
)
def test_a_head_of_another_task_is_drawn_anew_from_the_seed(save, head):
    spec, _, own = save(*(("pos", "neg") if head.labels else ()))
    first, again, other = (load_model(spec, head, seed=seed).classifier for seed in (0, 0, 1))
    assert torch.equal(first.weight, again.weight) and not first.bias.any()
    for weight in (own, other.weight):
        assert not torch.isclose(first.weight, weight).any()
    assert float(first.weight.std()) == pytest.approx(0.02, rel=0.4)  # BERT's initializer_range


def test_every_layer_of_such_a_head_is_new(tmp_path):
    """RoBERTa's has two: of a checkpoint with three classes, the first would fit a head for two."""
    config = RobertaConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        id2label={0: "a", 1: "b", 2: "c"},
        label2id={"a": 0, "b": 1, "c": 2},
    )
    torch.manual_seed(3)
    model = Roberta(config)
    model.save_pretrained(tmp_path)
    loaded = load_model(ModelSpec(path=str(tmp_path)), head_of("pos", "neg"), seed=0)
    assert not torch.isclose(loaded.classifier.dense.weight, model.classifier.dense.weight).any()
    torch.testing.assert_close(loaded.roberta.state_dict(), model.roberta.state_dict())


def test_a_checkpoint_without_a_head_loads_as_before(tmp_path):
    spec = ModelSpec(path=str(save_tiny_model(tmp_path)))
    loaded = load_model(spec, head_of("neg", "pos"), seed=4)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        expected = BertForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    torch.testing.assert_close(loaded.classifier.state_dict(), expected.classifier.state_dict())


@pytest.mark.parametrize(("names", "said"), [(("pos", "neg"), "match by name"), (("yes", "no"), "classes are yes, no")])
def test_the_record_says_what_became_of_the_head(save, tmp_path, names, said):
    spec, _, _ = save(*names)
    AutoTokenizer.from_pretrained(tmp_path)
    data = tmp_path / "data.csv"
    data.write_text("text,label\n" + "".join(f"the cat {i},{'pos' if i % 2 else 'neg'}\n" for i in range(40)))
    task = TextClassification(spec, DataSpec(path=str(data)), 32)
    assert any(said in note for note in task.facts.notes)


@pytest.mark.parametrize(
    ("kind", "architectures", "names", "note"),
    [
        (BertForSequenceClassification, None, ("sports", "politics", "x"), "its classes are sports"),
        (BertForSequenceClassification, ["MyBert"], ("sports", "politics", "x"), "its classes are sports"),
        (BertForTokenClassification, ["BertForTokenClassification"], ("a", "b", "c"), "a BertForTokenClassification"),
        (BertForMultipleChoice, ["BertForMultipleChoice"], (), None),
    ],
)
def test_a_head_of_the_right_shape_is_not_taken_for_that_of_the_task(tmp_path, kind, architectures, names, note):
    """By no name of the architecture, a foreign one, or one for another task: new weights at every seed."""
    save_tiny_model(tmp_path)
    config = BertConfig.from_pretrained(tmp_path, num_labels=len(names) or 1)
    if names:
        config.id2label, config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
    model = kind(config)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["architectures"] = architectures
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in saved.items() if v is not None}))
    spec = ModelSpec(path=str(tmp_path))
    head = head_of("a", "b", "c") if names else Head(CLASS, "a regression", problem_type="regression")
    first, second = (load_model(spec, head, seed=seed).classifier.weight for seed in (0, 1))
    assert not torch.equal(first, second)
    assert not torch.equal(first, model.classifier.weight)
    found = checkpoint_head(spec, head)
    assert found is not None and found.order is None
    assert (note or "a BertForMultipleChoice") in found.note
