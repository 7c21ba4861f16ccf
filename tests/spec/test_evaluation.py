"""Settings of scores: what is refused in one line, and what is part of a run's id."""

from __future__ import annotations

import pytest

from tunewise.errors import SpecError
from tunewise.spec import EvaluationSpec, RunSpec, StudySpec, parse

BASE = {"model": {"path": "m"}, "data": {"path": "d.csv"}, "method": {"name": "lora"}}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"extract": "#### (.*"}, "not a regular expression"),
        ({"extract": "####.*"}, "0 groups"),
        ({"extract": "(a)(b)"}, "2 groups"),
        ({"harness": "gsm8k"}, "lm_eval:TASK"),
        ({"harness": "lm_eval:"}, "lm_eval:TASK"),
        ({"temperature": -1}, "greater than or equal to 0"),
    ],
)
def test_a_setting_that_means_nothing_is_refused_in_one_line(settings, words):
    with pytest.raises(SpecError, match=words) as refused:
        parse(EvaluationSpec, settings)
    assert "\n" not in str(refused.value)


def test_what_scores_is_part_of_the_id_and_where_it_lies_is_not():
    def run_id(metric=None, **settings):
        return RunSpec.model_validate({**BASE, "metric": metric, "evaluation": settings}).id

    ids = [
        run_id(),
        run_id("bleu"),
        run_id(extract="(x)"),
        run_id(eval_samples=3),
        run_id("/a/my.py:score", digest="1"),
        run_id("/a/my.py:score", digest="2"),
        run_id(harness="/a/t.yaml", digest="1"),
    ]
    assert len(set(ids)) == len(ids)
    assert run_id("/a/my.py:score", digest="1") == run_id("/b/my.py:score", digest="1")
    assert run_id(harness="/a/t.yaml", digest="1") == run_id(harness="/b/t.yaml", digest="1")


def test_a_study_hands_its_settings_to_all_runs_and_points():
    study = StudySpec.model_validate(
        {
            "model": "m",
            "data": "d.csv",
            "methods": "lora",
            "evaluation": {"extract": "(x)"},
            "points": [{"methods": "cla"}, {"methods": "cla", "rank": 4, "evaluation": {"extract": "(y)"}}],
        }
    )
    assert [(run.method.rank, run.evaluation.extract) for run in study.runs() if run.seed == 0] == [
        (8, "(x)"),
        (8, "(x)"),
        (4, "(y)"),
    ]
