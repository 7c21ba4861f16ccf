"""Language models: which tokens are learned, perplexity by its formula, prompts kept together, whole comparisons."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch

from command_line import invoke
from tiny_language import save_tiny_llama, save_toy_lines, save_toy_prompts
from tunewise.errors import DataError, ModelError
from tunewise.spec import DataSpec, ModelSpec
from tunewise.store.folders import RunStore
from tunewise.tasks.build import detect_task
from tunewise.tasks.causal import IGNORED, CausalLanguage
from tunewise.training.evaluation import evaluate
from tunewise.training.selection import Selection

BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return ModelSpec(path=str(save_tiny_llama(tmp_path_factory.mktemp("llama") / "model")))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return DataSpec(
        path=str(save_toy_prompts(tmp_path_factory.mktemp("toy") / "toy.csv")), text="prompt", label="answer"
    )


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    return DataSpec(path=str(save_toy_lines(tmp_path_factory.mktemp("toy") / "toy.txt")))


def words(task, ids):
    return task.tokenizer.convert_ids_to_tokens(ids)


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- what is learned ------------------------------------------------------------------------------


def test_of_a_completion_its_tokens_and_the_end_are_targets(llama, prompts):
    task = CausalLanguage(llama, prompts, 32)
    for row in task.train:
        shown, targets = words(task, row["input_ids"]), [t for t in row["labels"] if t != IGNORED]
        assert shown[0] == "<s>" and shown[4] == ":" and shown[-1] == "</s>"
        assert words(task, targets) == shown[5:]
        assert row["labels"][:5] == [IGNORED] * 5
    assert int(task.targets(task.train).sum()) == sum(len(r["input_ids"]) - 5 for r in task.train)
    assert task.facts.notes[0].startswith("Completions (column 'answer') of prompts (column 'prompt')")


def test_of_a_text_all_tokens_but_the_first_are_targets(llama, lines):
    task = CausalLanguage(llama, lines, 32)
    row = task.train[0]
    assert row["input_ids"][0] == BOS and row["input_ids"][-1] != EOS
    assert row["labels"] == [IGNORED, *row["input_ids"][1:]]
    assert task.facts.labels == []


def test_what_is_too_long_loses_the_beginning_of_its_prompt_first(tmp_path, llama):
    path = tmp_path / "a.csv"
    rows = [
        (f"cat dog horse bird fish cow {w}", "the a my old") for w in ("egg", "cake", "bean", "rice", "soup", "saw")
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows, ("axe", "new big small and with near under over the a")])
    task = CausalLanguage(llama, DataSpec(path=str(path), validation_size=0.2), 9)
    rows = [*task.train, *task.validation, *task.test]
    short = [words(task, r["input_ids"]) for r in rows if len([t for t in r["labels"] if t != IGNORED]) == 5]
    assert len(short) == 6
    for shown in short:  # <s>, three words of the prompt, four of the completion and the end
        assert shown[0] == "<s>" and shown[1:3] == ["fish", "cow"] and shown[-5:] == ["the", "a", "my", "old", "</s>"]
    (long,) = (r for r in rows if words(task, r["input_ids"])[1] == "new")
    assert words(task, long["input_ids"]) == ["<s>", "new", "big", "small", "and", "with", "near", "under", "over"]
    assert "7 of 7 texts are longer than 9 tokens and were cut there." in task.facts.notes


def test_padding_is_seen_by_nobody_and_no_target(llama, prompts):
    task = CausalLanguage(llama, prompts, 32)
    short, long = sorted(task.train, key=task.length)[0], sorted(task.train, key=task.length)[-1]
    batch = task.collate([short, long])
    padding = batch["attention_mask"] == 0
    assert padding.any() and not padding[:, 0].any()
    assert (batch["labels"][padding] == IGNORED).all()


def test_text_alone_where_there_is_no_label_column_and_where_none_is_wanted(tmp_path, llama):
    path = tmp_path / "a.csv"
    path.write_text(
        "text,label\n" + "\n".join(f"the {w} :,food" for w in ("egg", "cake", "bean", "rice", "soup", "saw"))
    )
    prompted = CausalLanguage(llama, DataSpec(path=str(path)), 32)
    assert words(prompted, prompted.train[0]["input_ids"])[-2:] == ["food", "</s>"]
    alone = CausalLanguage(llama, DataSpec(path=str(path), label=""), 32)
    assert words(alone, alone.train[0]["input_ids"])[-1] == ":"
    with pytest.raises(DataError, match="no column 'lable'; did you mean 'label'"):
        CausalLanguage(llama, DataSpec(path=str(path), label="lable"), 32)


def test_a_completion_in_a_column_that_is_not_named_is_refused(tmp_path, llama):
    rows = [{"text": f"a {i}", "id": i} for i in range(20)]
    path = tmp_path / "a.jsonl"
    for change, fault in (({"completion": "b"}, "line 8: the column 'completion'.*--label completion"), ({}, None)):
        spec = DataSpec(path=str(write_lines(path, [*rows[:7], rows[7] | change, *rows[8:]])))
        if fault:
            with pytest.raises(DataError, match=f"a.jsonl, {fault}"):
                CausalLanguage(llama, spec, 32)
        else:
            assert not any("Warning" in note for note in CausalLanguage(llama, spec, 32).facts.notes)


def test_a_row_with_other_columns_is_named_in_a_note(tmp_path, llama):
    prompts = [{"text": f"a {i}", "label": "b"} for i in range(20)]
    prompts[7] |= {"completion": "c"}
    texts = write_lines(tmp_path / "a.jsonl", [{"text": f"a {i}"} for i in range(20)])
    other = write_lines(tmp_path / "test.jsonl", [{"text": f"b {i}", "completion": "c"} for i in range(9)])
    for spec, where in (
        (DataSpec(path=str(write_lines(tmp_path / "b.jsonl", prompts))), "b.jsonl, line 8"),
        (DataSpec(path=str(texts), test=str(other)), "test.jsonl, line 1"),
    ):
        (warning,) = [note for note in CausalLanguage.read(spec)[1].notes if note.startswith("Warning")]
        assert f"{where} has the columns text, " in warning and "completion" in warning


# --- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["prompts", "lines"])
def test_perplexity_is_e_to_the_mean_loss_over_target_tokens(llama, kind, request):
    """By the formula, token by token in double precision, each example alone and without padding."""
    task = CausalLanguage(llama, request.getfixturevalue(kind), 32)
    model = task.load_model(0).eval()
    losses, right, each = [], [], []
    with torch.no_grad():
        for row in task.test:
            log = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
            places = [i for i in range(1, len(row["labels"])) if row["labels"][i] != IGNORED]
            mine = [-float(log[i - 1, row["labels"][i]]) for i in places]
            losses += mine
            each.append(sum(mine) / len(mine))
            right += [int(log[i - 1].argmax()) == row["labels"][i] for i in places]
    found = evaluate(model, task, task.test, batch_size=5)
    assert found.scores.loss == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert found.scores.metrics["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-6)
    assert found.scores.metrics["token_accuracy"] == pytest.approx(sum(right) / len(right))
    torch.testing.assert_close(task.losses(found.logits, found.labels), torch.tensor(each).double(), rtol=1e-6, atol=0)
    batch = task.collate(task.test[:4])
    raw = task.losses(model(**batch).logits, batch["labels"])
    torch.testing.assert_close(raw, torch.tensor(each[:4]).double(), rtol=1e-5, atol=0)
    assert torch.equal(task.weights(model(**batch).logits, batch["labels"]), task.targets(task.test)[:4].double())


def test_a_loss_beyond_all_bounds_has_a_finite_perplexity(llama, lines):
    task = CausalLanguage(llama, lines, 32)
    kept = torch.tensor([[9000.0, 0.0, 9.0]]).double()
    assert math.isfinite(task.score(kept, torch.tensor([9]))["perplexity"])


def test_the_epoch_with_the_lowest_perplexity_is_kept(tmp_path, tiny_model):
    from transformers import AutoModelForSequenceClassification

    from tunewise import attach

    model = attach(AutoModelForSequenceClassification.from_pretrained(tiny_model), "lora", rank=2)
    selection = Selection(tmp_path / "selected", by="metric")
    for epoch, perplexity in enumerate([9.0, 4.0, 5.0], start=1):
        selection.offer(model, epoch, loss=0.0, metric=perplexity, lower_is_better=True)
    assert selection.load(model) == 2


# --- splits ---------------------------------------------------------------------------------------


def test_a_prompt_is_in_one_part_with_all_its_completions(llama, prompts):
    task = CausalLanguage(llama, prompts, 32)
    parts = {
        part: [tuple(r["input_ids"][: r["labels"].count(IGNORED)]) for r in getattr(task, part)]
        for part in ("train", "validation", "test")
    }
    assert not set(parts["train"]) & set(parts["test"]) and not set(parts["train"]) & set(parts["validation"])
    assert not set(parts["validation"]) & set(parts["test"])
    assert sum(map(len, parts.values())) == 80
    assert all(found.count(prompt) == 2 for found in parts.values() for prompt in found)
    assert 12 <= len(parts["validation"]) <= 14 and 16 <= len(parts["test"]) <= 18
    other = CausalLanguage(llama, prompts.model_copy(update={"split_seed": 1}), 32)
    assert other.test != task.test
    assert CausalLanguage(llama, prompts, 32).test == task.test


def test_one_prompt_for_all_cannot_be_cut(tmp_path, llama):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "\n".join(f"the :,{w}" for w in ("egg", "cake", "bean", "rice")))
    with pytest.raises(DataError, match="one and the same prompt, so no test part can be cut; name a test file"):
        CausalLanguage(llama, DataSpec(path=str(path)), 32)


def test_e2e_is_read_as_prompts_and_completions(shared_data: Path) -> None:
    """Counts of the data's README, its dev part standing in for the large train; the splits share no prompt."""
    task = CausalLanguage(_stories(shared_data), _e2e(shared_data, "devset", test="testset_w_refs"), 64)
    assert len(task.test) == 4_693
    assert len(task.train) + len(task.validation) == 4_672 - 151
    assert "train: 151 exact duplicates dropped." in task.facts.notes
    assert not any("removed" in note for note in task.facts.notes)
    assert any("with all of their targets" in note for note in task.facts.notes)


@pytest.mark.slow
def test_e2e_is_read_whole(shared_data: Path) -> None:
    data = _e2e(shared_data, "trainset_restored", validation="devset", test="testset_w_refs")
    task = CausalLanguage(_stories(shared_data), data, 64)
    assert (len(task.validation), len(task.test)) == (4_672, 4_693)
    assert len(task.train) == 42_061 - 1_202
    assert not any("removed" in note for note in task.facts.notes)


def _stories(shared: Path) -> ModelSpec:
    return ModelSpec(path=str(shared / "models" / "stories260K"))


def _e2e(shared: Path, train: str, **parts: str) -> DataSpec:
    files = {role: str(shared / "e2e" / f"{name}.csv.gz") for role, name in {"path": train, **parts}.items()}
    return DataSpec(**files, text="mr", label="ref")


# --- models ---------------------------------------------------------------------------------------


def test_a_model_that_sees_what_it_should_predict_is_refused(tiny_model, lines):
    with pytest.raises(ModelError, match="a bert sees the tokens that it should predict"):
        CausalLanguage(ModelSpec(path=str(tiny_model)), lines, 32)


def test_plain_text_is_for_a_language_model(lines, toy_csv):
    for data, task in ((lines.path, "causal"), (str(toy_csv), "text"), ("x.TXT.gz", "causal")):
        assert detect_task(DataSpec(path=data)) == task


def test_a_head_cannot_be_trained_alone_where_there_is_none(llama, lines, tmp_path, monkeypatch, capsys):
    words = ["compare", f"--model={llama.path}", f"--data={lines.path}", "--methods=head,lora", f"--out={tmp_path}"]
    assert invoke(monkeypatch, *words) == 2
    assert "method 'head' needs a task head, and LlamaForCausalLM has none" in capsys.readouterr().err


def test_the_real_model_finds_stories_easy(shared_data: Path, tmp_path: Path) -> None:
    """The data's README: 0.9 nats a token on simple stories."""
    story = (
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
        "One day, she saw a big, red ball. She wanted to play with it, but it was too high."
    )
    other = "Quarterly revenue fell short of consensus estimates as hedging losses offset gains in derivatives trading."
    losses = {}
    for name, text in {"story": story, "news": other}.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{text} {n}" for n in ("One", "Two", "Three", "Four")))
        task = CausalLanguage(
            ModelSpec(path=str(shared_data / "models" / "stories260K")),
            DataSpec(path=str(tmp_path / f"{name}.txt")),
            256,
        )
        losses[name] = evaluate(task.load_model(0), task, task.train, batch_size=4).scores.loss
    assert losses["story"] < 1.3
    assert losses["news"] > 4


# --- whole comparisons ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(llama, prompts, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    flags = [f"--model={llama.path}", f"--data={prompts.path}", "--text=prompt", "--label=answer", "--task=causal"]
    flags += ["--methods=lora,cla", "--rank=4", "--targets=all-linear", "--seeds=1", "--epochs=6", "--batch-size=8"]
    flags += ["--learning-rate=0.02", "--measures=forgetting", f"--out={out}", "--max-length=16"]
    with pytest.MonkeyPatch.context() as patch:
        assert invoke(patch, "compare", "--no-tune", *flags) == 0
    return out


def test_a_comparison_of_language_models_learns_and_the_lower_perplexity_wins(compared):
    records = RunStore(compared).records()
    assert len(records) == 2
    for record in records:
        results = record.results
        assert results.metric == "perplexity" and not results.higher_is_better
        assert results.confusion is None
        for scores in (results.train, results.validation, results.test):
            assert scores.metrics["perplexity"] == pytest.approx(math.exp(scores.loss), rel=1e-9)
        assert results.test.metrics["perplexity"] < 4  # untrained: about as many as there are words, 44
        assert record.check.max_logit_difference < 1e-4
    (costs,) = compared.glob("costs/*.json")
    assert json.loads(costs.read_text())["batch"].startswith("8 texts (")
    (report,) = compared.glob("compare-*/report.html")
    page = report.read_text(encoding="utf-8")
    assert "test perplexity" in page and "test perplexity, %" not in page
    assert "0 classes" not in page
    assert "Upper left is best" in page


def test_a_merged_language_model_has_the_same_perplexity(compared, tmp_path, monkeypatch):
    record = next(r for r in RunStore(compared).records() if r.spec.method.name == "cla")
    out = tmp_path / "merged"
    assert invoke(monkeypatch, "export", str(compared / record.id), "--to=merged", f"--out={out}") == 0
    task = CausalLanguage(ModelSpec(path=str(out)), record.spec.data, record.spec.training.max_length)
    again = evaluate(task.load_model(0), task, task.test, batch_size=8).scores
    assert again.loss == pytest.approx(record.results.test.loss, rel=1e-4)
