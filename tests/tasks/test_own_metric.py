"""A user's own function as the metric: what it may return, and what is said where it fails."""

from __future__ import annotations

import pytest

from tunewise.errors import SpecError
from tunewise.spec import EvaluationSpec
from tunewise.tasks.own_metric import OwnMetric, scoring_digest

TEXTS, EXAMPLES = ["right", "wrong"], [{"q": "1"}, {"q": "2"}]


@pytest.fixture
def own(tmp_path):
    """A metric whose function has this body."""

    def write(body, name="score"):
        file = tmp_path / f"my_metrics{len(list(tmp_path.iterdir()))}.py"
        file.write_text(f"import numpy, torch\ndef score(predictions, references, examples):\n    {body}\n")
        return OwnMetric.parse(f"{file}:{name}")

    return write


@pytest.mark.parametrize(
    ("body", "value", "by_example"),
    [
        ("return [float(p == r) for p, r in zip(predictions, references)]", 0.5, [1, 0]),
        ("return numpy.array([p == r for p, r in zip(predictions, references)])", 0.5, [1, 0]),
        ("return torch.tensor([0.25, 0.5])", 0.375, [0.25, 0.5]),
        ("return 3", 3, []),
        ("return sum(int(e['q']) for e in examples)", 3, []),
    ],
)
def test_a_number_or_a_list_of_numbers(own, body, value, by_example):
    found = own(body).score(TEXTS, ["right", "rights"], EXAMPLES)
    assert (found.value, found.by_example) == (value, by_example)


@pytest.mark.parametrize("body", ["return [1.0]", "return 'good'", "return None", "return float('nan')", "return {}"])
def test_anything_else_is_refused(own, body):
    with pytest.raises(SpecError, match="for 2 examples; return a finite number, or a list"):
        own(body).score(TEXTS, TEXTS, EXAMPLES)


def test_a_function_that_fails_is_named_with_its_line(own):
    metric = own("return predictions[5]")
    with pytest.raises(SpecError, match=rf"metric {metric.key}, line 3: IndexError: list index out of range"):
        metric.score(TEXTS, TEXTS, EXAMPLES)


@pytest.mark.parametrize(
    ("body", "name", "words"),
    [
        ("return [float(r in p) for p, r in zip(predictions, references)]", "score", None),
        ("print('noise'); return 1 / 0", "score", "line 3: ZeroDivisionError"),
        ("raise SystemExit(3)", "score", "ended its process"),
        ("return 1.0", "scores", "no function 'scores'"),
        ("return len(predictions[1].split()[0])", "score", "IndexError"),  # of an empty answer
    ],
)
def test_it_is_tried_out_in_a_fresh_process(own, body, name, words):
    metric = own(body, name)
    if words is None:
        metric.try_out(TEXTS, EXAMPLES)
        return
    with pytest.raises(SpecError, match=words) as refused:
        metric.try_out(TEXTS, EXAMPLES)
    assert str(refused.value).startswith(f"metric {metric.file.name}:")


def test_a_changed_function_has_another_digest(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def score(p, r, e): return 0\n")
    before = scoring_digest(f"{file}:score", EvaluationSpec())
    file.write_text("def score(p, r, e): return 1\n")
    assert before != scoring_digest(f"{file}:score", EvaluationSpec())
    assert scoring_digest("bleu", EvaluationSpec()) is None


def test_names_of_metrics_are_no_files(tmp_path):
    assert OwnMetric.parse("exact_match") is OwnMetric.parse(None) is None
    with pytest.raises(SpecError, match="no such file"):
        OwnMetric.parse(f"{tmp_path}/none.py:score")
