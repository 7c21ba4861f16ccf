"""lm-evaluation-harness as the test of a run: a task of a local file, against the harness called directly."""

from __future__ import annotations

import json

import pytest

from tiny_language import save_tiny_llama, save_toy_prompts
from tunewise.errors import SpecError
from tunewise.models.head import Head
from tunewise.run import run
from tunewise.spec import EvaluationSpec, StudySpec
from tunewise.store.answers import read_answers
from tunewise.store.folders import RunStore
from tunewise.study import evidence
from tunewise.study.plan import make_plan
from tunewise.training.harness import check_harness

TASK = """
task: toy_answers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: [animals, food, tools]
doc_to_target: "{{{{kind}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


@pytest.mark.slow
def test_a_local_task_is_the_test_metric_with_its_result_on_each_example(tmp_path):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from peft import PeftModel

    model = save_tiny_llama(tmp_path / "model")
    data = save_toy_prompts(tmp_path / "toy.csv", prompts=16)
    kinds = ["cat dog :", "bread cheese :", "saw axe :", "horse fish :", "apple rice :"]
    docs = [{"prompt": prompt, "kind": place % 3} for place, prompt in enumerate(kinds)]
    (tmp_path / "docs.jsonl").write_text("\n".join(map(json.dumps, docs)))
    (tmp_path / "toy.yaml").write_text(TASK.format(file=tmp_path / "docs.jsonl"))
    study = StudySpec.model_validate(
        {
            "task": "causal",
            "model": str(model),
            "data": {"path": str(data), "text": "prompt", "label": "answer"},
            "methods": "lora",
            "seeds": 1,
            "training": {"max_length": 32, "epochs": 1, "learning_rate": 1e-2, "select": "metric"},
            "evaluation": {"harness": str(tmp_path / "toy.yaml")},
        }
    )
    store = RunStore(tmp_path / "runs")
    plan = make_plan(study, store)
    record = run(plan.runs[0].spec, store, task=plan.task)
    assert record.results.metric == "lm_eval:toy_answers/acc"
    assert record.results.items == 5

    trained = PeftModel.from_pretrained(plan.task.load_model(0), store.folder(record.id) / "adapter")
    direct = lm_eval.simple_evaluate(
        model=HFLM(pretrained=trained, tokenizer=plan.task.tokenizer),
        tasks=["toy_answers"],
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
    )
    assert record.results.test.metrics["lm_eval:toy_answers/acc"] == direct["results"]["toy_answers"]["acc,none"]
    answers = read_answers(store.folder(record.id) / "predictions.jsonl")
    samples = direct["samples"]["toy_answers"]
    assert [a.scores["lm_eval:toy_answers/acc"] for a in answers] == [sample["acc"] for sample in samples]
    assert answers[0].prompt == "cat dog :"
    scores = evidence.item_scores([record], {record.id: answers}, record.results.metric)["lora"][0]
    assert scores.scores.tolist() == [sample["acc"] for sample in samples]

    (tmp_path / "toy.yaml").write_text(TASK.format(file=tmp_path / "docs.jsonl") + "num_fewshot: 1\n")
    assert make_plan(study, store).done == set()


def test_a_task_that_is_not_there_is_refused_at_once(tmp_path):
    pytest.importorskip("lm_eval")
    language = Head("AutoModelForCausalLM", "a causal language model", pretrained=True)
    with pytest.raises(SpecError, match=r"eval '.*none.yaml'"):
        check_harness(EvaluationSpec(harness=str(tmp_path / "none.yaml")), language)
    with pytest.raises(SpecError, match="not for a classifier"):
        check_harness(
            EvaluationSpec(harness="lm_eval:gsm8k"), Head("AutoModelForSequenceClassification", "a classifier")
        )
