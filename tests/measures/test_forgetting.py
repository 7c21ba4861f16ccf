"""Forgetting against closed forms, and on real runs of the tiny model."""

from __future__ import annotations

import pytest
import torch

from tiny import save_tiny_model, save_toy_csv
from tunewise.measures.base import MeasureSettings
from tunewise.measures.collect import collect
from tunewise.measures.finished import FinishedRun, no_check
from tunewise.measures.forgetting.compute import backbone, compute, drift, features
from tunewise.measures.forgetting.held_out import documentation, held_out, masked
from tunewise.models.language import language_model
from tunewise.run import run
from tunewise.spec import ModelSpec, StudySpec
from tunewise.store.folders import RunStore
from tunewise.study.plan import make_plan
from tunewise.training.events import Listener


def comparison(tmp_path, **changes):
    return StudySpec.model_validate(
        {
            "model": str(save_tiny_model(tmp_path / "model")),
            "data": str(save_toy_csv(tmp_path / "toy.csv")),
            "methods": "lora,fft",
            "seeds": [0],
            "training": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-2},
            **changes,
        }
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of lora and one of fft, done."""
    folder = tmp_path_factory.mktemp("forgetting")
    store = RunStore(folder / "runs")
    plan = make_plan(comparison(folder), store)
    records = [run(one.spec, store, task=plan.task) for one in plan.runs]
    return plan, records, store


def forgetting(opened):
    return compute(opened, MeasureSettings(), no_check)


def open_again(finished, number):
    plan, records, store = finished
    record = records[number]
    return FinishedRun(record, store.folder(record.id), plan.task, store.root / "cache")


def test_drift_of_nothing_is_nothing():
    f = torch.randn(20, 8)
    assert drift(f, f.clone()).model_dump() == pytest.approx({"drift": 0.0, "turn": 0.0, "similarity": 1.0}, abs=1e-12)


def test_drift_of_a_stretch_and_of_a_rotation():
    f = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    stretched = drift(f, 1.5 * f)
    assert stretched.drift == pytest.approx(0.5)
    assert stretched.turn == pytest.approx(0.0, abs=1e-9)
    assert stretched.similarity == pytest.approx(1.0)  # CKA does not see an isotropic stretch
    turned = drift(f, -f)
    assert turned.drift == pytest.approx(2.0)
    assert turned.turn == pytest.approx(2.0)
    q = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2)))[0]
    assert drift(f, f @ q).similarity == pytest.approx(1.0)  # nor a rotation


def test_similarity_is_cka_by_its_kernel_form():
    draw = torch.Generator().manual_seed(3)
    x, y = torch.randn(30, 5, generator=draw).double(), torch.randn(30, 5, generator=draw).double()
    centre = torch.eye(30).double() - 1 / 30
    one, other = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    expected = float((one * other).sum() / (one.norm() * other.norm()))
    assert drift(x, y).similarity == pytest.approx(expected)


def test_the_passages_are_prose_and_always_the_same():
    texts = documentation(64)
    assert len(texts) == 64 == len(set(texts))
    assert texts == documentation(64)
    assert sum(" the " in text for text in texts) > 56


def test_features_leave_padding_out(finished):
    opened = open_again(finished, 0)
    inputs = held_out(opened)
    alone = {k: v[-1:, : int(inputs.batches[-1]["attention_mask"][-1].sum())] for k, v in inputs.batches[-1].items()}
    network = backbone(opened.base)
    whole = features(network, inputs, lambda: None)[-1]
    with torch.no_grad():
        expected = network(**alone).last_hidden_state[0].mean(0)
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", [0, 1])
def test_a_trained_run_drifts_and_is_left_as_it_was(finished, number):
    opened = open_again(finished, number)
    before = {name: tensor.clone() for name, tensor in opened.model.state_dict().items()}
    values = forgetting(opened)
    assert values.drift > 1e-3
    assert 0 <= values.similarity <= 1
    assert values.loss is None  # the tiny checkpoint is a plain encoder
    after = opened.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    values.model_dump_json()
    assert forgetting(open_again(finished, number)) == values  # from the cache


def test_an_untouched_model_forgets_nothing(finished):
    opened = open_again(finished, 0)
    opened.__dict__["model"] = opened.base
    values = forgetting(opened)
    assert values.drift == 0.0
    assert values.turn == pytest.approx(0.0, abs=1e-12)


def test_collected_once_and_kept(finished):
    plan, records, store = finished
    found = collect(["forgetting"], records, store, plan.task, Listener())
    file = store.folder(records[0].id) / "measures" / "forgetting.json"
    stamp = file.stat().st_mtime_ns
    again = collect(["forgetting"], records, store, plan.task, Listener())
    assert file.stat().st_mtime_ns == stamp and again == found
    assert store.finished(records[0].id) is not None  # the run's own checksums are not touched


def save_masked_model(folder):
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    save_tiny_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"mask_token": "[UNK]"})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


def test_masked_language_loss_where_the_checkpoint_has_a_head(tmp_path):
    folder = save_masked_model(tmp_path / "masked")
    assert language_model(ModelSpec(path=str(folder)))[0] == "masked"
    spec = comparison(tmp_path, model=str(folder))
    store = RunStore(tmp_path / "runs")
    plan = make_plan(spec, store)
    for one in plan.runs:  # lora, then fft: its embeddings move, and the tied decoder with them
        record = run(one.spec, store, task=plan.task)
        opened = FinishedRun(record, store.folder(record.id), plan.task, store.root / "cache")
        values = forgetting(opened)
        assert values.loss.kind == "masked"
        assert values.loss.difference != 0.0
        # By hand: the checkpoint's own model with the merged weights written into it.
        from transformers import BertForMaskedLM

        plain = BertForMaskedLM.from_pretrained(folder).eval()
        tuned = opened.model
        if hasattr(tuned, "merge_and_unload"):
            tuned = tuned.merge_and_unload()
        plain.bert.load_state_dict({k: v for k, v in tuned.bert.state_dict().items() if "pooler" not in k})
        losses = []
        for number, batch in enumerate(held_out(opened).batches):
            shown, labels = masked(batch, held_out(opened).tokenizer, seed=number)
            with torch.no_grad():
                logits = plain(**shown).logits
            for row, wanted in zip(logits, labels, strict=True):
                at = wanted != -100
                if bool(at.any()):  # the model's words are few: some passages are unknown tokens alone
                    losses.append(float(torch.nn.functional.cross_entropy(row[at], wanted[at])))
        assert values.loss.after == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_masking_depends_on_the_seed_alone_and_spares_special_tokens(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(save_masked_model(tmp_path / "m"))
    rows = tokenizer(["cat dog horse bird", "hammer saw"], padding=True, return_tensors="pt")
    shown, labels = masked(dict(rows), tokenizer, seed=3)
    again, same = masked(dict(rows), tokenizer, seed=3)
    assert torch.equal(shown["input_ids"], again["input_ids"]) and torch.equal(labels, same)
    chosen = labels != -100
    assert bool(chosen.any(dim=1).all())
    assert not bool((chosen & (rows["attention_mask"] == 0)).any())
    assert not bool(chosen[:, 0].any())  # [CLS]
    assert torch.equal(labels[chosen], rows["input_ids"][chosen])
