"""Generated answers side by side: the same items of all methods, with their scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tunewise.report.answers_section import section
from tunewise.report.report_page import render
from tunewise.store.answers import Answer


def with_answers(whole: Any, items: int) -> Any:
    answers = {
        record.id: [
            Answer(
                prompt=f"prompt {i}",
                reference=f"reference {i}",
                prediction=f"<b>{record.spec.method.label}</b>, seed {record.spec.seed}, {i}",
                scores={whole.summaries[0].metric: i / items},
            )
            for i in range(items)
        ]
        for record in whole.records
        if record.spec.method.label in ("lora", "cla")
    }
    return replace(whole.data, answers=answers)


def test_each_item_has_the_answer_of_every_method_at_its_first_seed(whole: Any) -> None:
    found = section(with_answers(whole, 60))
    assert found is not None
    assert [example.title for example in found.examples] == [f"prompt {i}" for i in range(0, 60, 3)]
    assert dict(found.examples[2].texts) == {
        "prompt": "prompt 6",
        "reference": "reference 6",
        "lora (0.1)": "<b>lora</b>, seed 0, 6",
        "cla (0.1)": "<b>cla</b>, seed 0, 6",
    }
    assert found.paragraphs[0].startswith("20 of 60 test items")


def test_texts_are_shown_as_they_are_and_long_ones_are_cut(whole: Any) -> None:
    data = with_answers(whole, 3)
    page = render("title", data)
    assert "Answers side by side" in page
    assert "&lt;b&gt;lora&lt;/b&gt;, seed 0, 1" in page and "<b>lora</b>" not in page
    first = next(iter(data.answers))
    longer = [answer.model_copy(update={"prediction": "x" * 5000}) for answer in data.answers[first]]
    found = section(replace(data, answers={**data.answers, first: longer}))
    assert found is not None
    assert max(len(text) for example in found.examples for _, text in example.texts) == 2000


def test_a_study_without_answers_has_no_such_section(whole: Any) -> None:
    assert section(whole.data) is None
    assert "Answers side by side" not in render("title", whole.data)
