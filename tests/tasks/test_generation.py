"""Answers that are generated: against the model's own argmax, and scored on validation and test alone."""

from __future__ import annotations

import gzip
import json
from collections import Counter

import pytest
import torch

from tiny_language import save_tiny_llama, save_toy_prompts
from tunewise.advise.summary import summarise
from tunewise.errors import DataError, SpecError
from tunewise.run import run
from tunewise.spec import DataSpec, EvaluationSpec, ModelSpec, StudySpec
from tunewise.store.answers import Answer, read_answers, write_answers
from tunewise.store.folders import RunStore
from tunewise.study import evidence
from tunewise.study.plan import make_plan
from tunewise.tasks.build import build_task
from tunewise.tasks.generation import Generation
from tunewise.tasks.text_metrics import normalize_spaces
from tunewise.training.evaluation import evaluate

EOS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model and toy prompts."""
    folder = tmp_path_factory.mktemp("generation")
    save_tiny_llama(folder / "model")
    save_toy_prompts(folder / "toy.csv", prompts=24)
    return folder


@pytest.fixture
def task(folder):
    return Generation(
        ModelSpec(path=str(folder / "model")),
        DataSpec(path=str(folder / "toy.csv"), text="prompt", label="answer"),
        32,
    )


@pytest.fixture(scope="module")
def model(folder):
    """The tiny model, taught a part of the answers."""
    data = DataSpec(path=str(folder / "toy.csv"), text="prompt", label="answer")
    task = Generation(ModelSpec(path=str(folder / "model")), data, 32)
    model = task.load_model(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = task.collate(task.test)
    for _ in range(12):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def study_of(folder, **changes):
    content = {
        "task": "generation",
        "model": str(folder / "model"),
        "data": {"path": str(folder / "toy.csv"), "text": "prompt", "label": "answer"},
        "methods": "lora",
        "seeds": 1,
        "training": {"max_length": 32, "epochs": 1, "learning_rate": 1e-2},
        "measures": "none",
    }
    return StudySpec.model_validate({**content, **changes})


# --- what is generated ------------------------------------------------------------------------------


def test_answers_are_those_of_decoding_by_hand(task, model):
    """A reference loop without cache or padding; of two completions of one prompt the model can say one."""
    found = evaluate(model, task, task.test, batch_size=5)
    expected = [by_hand(model, task, row) for row in task.test]
    assert [answer.prediction for answer in found.answers] == expected
    right = [text == normalize_spaces(row["reference"]) for text, row in zip(expected, task.test, strict=True)]
    assert 0 < sum(right) < len(right)
    assert [answer.scores["exact_match"] for answer in found.answers] == right
    assert found.scores.metrics["exact_match"] == sum(right) / len(right)
    assert [(a.prompt, a.reference) for a in found.answers] == [(e["prompt"], e["reference"]) for e in task.test]


@torch.no_grad()
def by_hand(model, task, row):
    ids, new = list(row["input_ids"][: row["labels"].count(-100)]), []
    while len(new) < task.new_tokens():
        new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        if new[-1] == EOS:
            return task.tokenizer.decode(new[:-1])
    return task.tokenizer.decode(new)


def test_only_validation_and_test_are_generated(task, model):
    for split in (task.train, task.test[:3]):
        found = evaluate(model, task, split, batch_size=5)
        assert found.answers == [] and "exact_match" not in found.scores.metrics


def test_a_checkpoints_own_ways_of_generating_change_nothing_but_the_ends(task, model):
    plain, own = task.generate(model, task.test), model.generation_config
    said = task.tokenizer(plain[0], add_special_tokens=False)["input_ids"]
    try:
        model.generation_config = type(own)(repetition_penalty=9.0, do_sample=True, top_p=0.1, eos_token_id=[said[-1]])
        given = model.generation_config
        texts = task.generate(model, task.test)
        assert model.generation_config is given
    finally:
        model.generation_config = own
    word = task.tokenizer.decode([said[-1]])
    assert texts == [text.partition(word)[0].strip() for text in plain]


def test_a_temperature_draws_the_same_answers_each_time_and_no_others_draw(task, model):
    greedy = task.generate(model, task.test)
    task.set_scores(None, EvaluationSpec(temperature=3.0))
    state = torch.get_rng_state()
    drawn = task.generate(model, task.test)
    assert drawn != greedy
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert task.generate(model, task.test) == drawn


def test_as_many_tokens_as_asked_for(task, model):
    longest = max(len(task.tokenizer.tokenize(e["reference"])) for e in (*task.validation, *task.test))
    assert task.new_tokens() == longest + 1 + 16  # the end-of-text token is one
    task.set_scores(None, EvaluationSpec(max_new_tokens=1))
    assert all(len(text.split()) <= 1 for text in task.generate(model, task.test))


def test_a_sample_is_generated_and_all_examples_have_a_loss(folder, task, model):
    whole = evaluate(model, task, task.test, batch_size=5)
    sampled = build_task(study_of(folder, evaluation={"eval_samples": 3}))
    found = evaluate(model, sampled, sampled.test, batch_size=5)
    assert found.scores.loss == whole.scores.loss
    assert found.answers == [whole.answers[place] for place in sampled.generated(sampled.test)]
    assert len(found.answers) == 3
    assert "test 3 of" in sampled.facts.notes[-1]
    everything = build_task(study_of(folder, evaluation={"eval_samples": 10_000}))
    assert everything.facts == task.facts


# --- how it is scored -------------------------------------------------------------------------------


def test_gsm8k_answers_are_extracted_from_predictions_and_references(tmp_path, shared_data):
    """The number after the last ####, as openai/grade-school-math compares it: without commas."""
    for part, count in (("train", 20), ("test", 200)):
        with gzip.open(shared_data / "gsm8k" / f"{part}.jsonl.gz", "rt", encoding="utf-8") as file:
            (tmp_path / f"{part}.jsonl").write_text("".join(next(file) for _ in range(count)), encoding="utf-8")
    paths = {"path": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")}
    data = DataSpec(**paths, text="question", label="answer")
    task = Generation(ModelSpec(path=str(shared_data / "models" / "stories260K")), data, 512)
    task.set_scores("numeric_match", EvaluationSpec(extract=r"####\s*(-?[\d,.]+)"))
    numbers = [e["reference"].rpartition("####")[2].strip() for e in task.test]
    assert any("," in number for number in numbers)
    texts = [f"#### 1\nno, it is #### {number.replace(',', '')}.0 dollars" for number in numbers]
    texts[0] = f"it is {numbers[0]}"  # not in the form that is asked for
    metrics, answers = task.grade(task.test, texts)
    assert metrics["numeric_match"] == 1 - 1 / len(texts)
    assert metrics["exact_match"] == 0
    assert [answer.prediction for answer in answers] == texts
    commonest = Counter(numbers).most_common(1)[0][1]
    assert task.constant_scores(task.test)["exact_match"] == commonest / len(numbers)


def test_the_floor_is_the_commonest_reference_by_every_metric(task):
    references = [example["reference"] for example in task.test]
    constant = Counter(references).most_common(1)[0][0]
    expected, _ = task.grade(task.test, [constant] * len(task.test))
    assert task.constant_scores(task.test) == expected
    assert expected["exact_match"] == Counter(references).most_common(1)[0][1] / len(references)


def test_an_expression_that_matches_no_reference_is_refused(task):
    with pytest.raises(DataError, match="matches nothing in the reference"):
        task.set_scores(None, EvaluationSpec(extract="#### (.*)"))


def test_faults_are_found_before_anything_is_loaded(call, folder):
    words = ["compare", "--task", "generation", "--model", "/no/model", "--data", "/no/data.csv", "--methods", "lora"]
    for flags, message in (
        (["--metric", "rouge"], "unknown metric 'rouge', and no FILE.py:FUNCTION; did you mean 'rouge_l'?"),
        (["--extract", "(a"], "not a regular expression"),
        (["--metric", f"{folder}/none.py:score"], "no such file"),
        (["--eval", "arc_easy"], "lm_eval:TASK"),
    ):
        code, _, err = call(*words, *flags)
        assert code == 2 and message in err and err.count("\n") == 1


def test_settings_of_answers_are_refused_where_nothing_is_generated(folder):
    study = study_of(folder, task="causal", evaluation={"extract": "(a)"})
    with pytest.raises(SpecError, match="extract is for generated answers"):
        make_plan(study, RunStore(folder / "runs"))


# --- runs -------------------------------------------------------------------------------------------


def test_a_finished_run_keeps_its_answers_and_they_are_compared_item_by_item(folder):
    store, study = RunStore(folder / "runs"), study_of(folder, methods="lora,cla", metric="token_f1")
    plan = make_plan(study, store)
    records = [run(planned.spec, store, task=plan.task) for planned in plan.runs]
    answers = [read_answers(store.folder(record.id) / "predictions.jsonl") for record in records]
    for record, kept in zip(records, answers, strict=True):
        assert "predictions.jsonl" in record.files
        assert record.results.items == len(kept) == record.data.test
        mean = sum(answer.scores["token_f1"] for answer in kept) / len(kept)
        assert record.results.test.metrics["token_f1"] == pytest.approx(mean)
    found = evidence.Evidence(plan.spec, store.root / "compare-0", records, "")
    _, cla = found.summarise()
    difference = [b.scores["token_f1"] - a.scores["token_f1"] for a, b in zip(*answers, strict=True)]
    assert cla.item_comparison.difference == pytest.approx(sum(difference) / len(difference))


def test_a_function_of_the_users_own_is_the_metric_and_part_of_the_run(folder, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def score(predictions, references, examples):\n    return [len(e['prompt']) for e in examples]\n")
    store, study = RunStore(folder / "runs"), study_of(folder, metric=f"{file}:score")
    plan = make_plan(study, store)
    record = run(plan.runs[0].spec, store)
    lengths = [len(example["prompt"]) for example in plan.task.test]
    assert record.results.metric == "mine.py:score"
    assert record.results.test.metrics["mine.py:score"] == pytest.approx(sum(lengths) / len(lengths))
    assert not summarise([record], None, "lora")[0].is_share
    assert make_plan(study, store).done == {record.id}
    file.write_text(file.read_text() + "\n")
    assert make_plan(study, store).done == set()
    with pytest.raises(SpecError, match="restore it"):
        build_task(record.spec)
    file.write_text("def score(predictions, references, examples):\n    return examples[0]['no such column']\n")
    with pytest.raises(SpecError, match=r"metric mine.py:score, line 2: KeyError"):
        make_plan(study, store)


def test_answers_are_read_as_they_were_written(tmp_path):
    text = 'line\u2028 separator\x85 "quotes"\r\n\t\\ 🙂'
    answers = [Answer(prompt=text, reference="", prediction=text, scores={"f1": 0.1 + 0.2})] * 2
    write_answers(tmp_path / "a.jsonl", answers)
    assert read_answers(tmp_path / "a.jsonl") == answers
    first = (tmp_path / "a.jsonl").read_text(encoding="utf-8").split("\n")[0]
    assert list(json.loads(first)) == ["prompt", "reference", "prediction", "scores"]
    assert read_answers(tmp_path / "absent.jsonl") == []
