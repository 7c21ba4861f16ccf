"""Scores of texts: against values by hand, SQuAD's evaluation script, rouge_score and sacrebleu."""

from __future__ import annotations

import collections
import random
import re
import string

import pytest

from tunewise.errors import SpecError
from tunewise.tasks import text_metrics
from tunewise.tasks.text_metrics import TEXT_METRICS, TextMetric, last_number, normalize_spaces, require_metric

PAIRS = [
    ("The  cat sat on the mat.", "the cat sat on a mat"),
    ("", "an answer"),
    ("", ""),
    ("a blue house, a red house", "Red house!"),
    ("In 1999 the price was $1,234.50", "1234.5"),
    ("nothing in common", "something else"),
]
PREDICTIONS, REFERENCES = [list(column) for column in zip(*PAIRS, strict=True)]


def scores(name, predictions=PREDICTIONS, references=REFERENCES):
    return TEXT_METRICS[name].score(predictions, references)


def squad_normalize(text):
    """`normalize_answer` of SQuAD's evaluate-v2.0.py."""

    def remove_articles(text):
        return re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text)

    exclude = set(string.punctuation)
    return " ".join(remove_articles("".join(ch for ch in text.lower() if ch not in exclude)).split())


def squad_f1(prediction, reference):
    """`compute_f1` of the same script."""
    gold, pred = squad_normalize(reference).split(), squad_normalize(prediction).split()
    same = sum((collections.Counter(gold) & collections.Counter(pred)).values())
    if len(gold) == 0 or len(pred) == 0:
        return int(gold == pred)
    if same == 0:
        return 0
    precision, recall = same / len(pred), same / len(gold)
    return 2 * precision * recall / (precision + recall)


def test_normalized_match_and_token_f1_are_those_of_squad():
    expected = [float(squad_normalize(p) == squad_normalize(r)) for p, r in PAIRS]
    assert scores("normalized_match").by_example == expected == [1, 0, 1, 0, 0, 0]
    assert scores("token_f1").by_example == pytest.approx([squad_f1(p, r) for p, r in PAIRS])
    assert scores("token_f1").value == pytest.approx(sum(squad_f1(p, r) for p, r in PAIRS) / 6)


def test_exact_match_asks_for_every_character_but_white_space():
    assert scores("exact_match", [" a\n b", "A b"], ["a b", "a b"]).by_example == [1, 0]
    assert normalize_spaces("  if  x :\n\treturn y ") == "if x : return y"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("it is 1,234,567.80 in all", "1234567.8"),
        ("from 3 to -4.", "-4"),
        ("10-3", "3"),
        ("1,2,3", "3"),
        (".5", "0.5"),
        ("1e3", "1000"),
        ("1e99999999999999999999", "99999999999999999999"),
        ("none", None),
    ],
)
def test_the_last_number_of_a_text(text, number):
    found = last_number(text)
    assert found is None if number is None else found == text_metrics.Decimal(number)


def test_numbers_match_by_value():
    found = scores("numeric_match", ["$18.00", "0.1", "no", "7"], ["18", ".10", "no", "8"])
    assert (found.value, found.by_example) == (0.5, [1, 1, 0, 0])


def test_json_is_compared_by_value():
    pairs = [
        ('{"a": 1, "b": [true, null]}', '{"b":[true,null],"a":1.0}', 1, 1),
        ("1", "true", 1, 0),
        ("[1, 2]", "[2, 1]", 1, 0),
        ('{"a": "1"}', '{"a": 1}', 1, 0),
        ("null", "null", 1, 1),
        ("NaN", "NaN", 0, 0),
        ('{"a": 1', '{"a": 1}', 0, 0),
        ("[" * 100_000, "[]", 0, 0),
    ]
    predictions, references, valid, match = (list(column) for column in zip(*pairs, strict=True))
    assert scores("json_valid", predictions, references).by_example == valid
    assert scores("json_match", predictions, references).by_example == match


def test_rouge_chrf_and_bleu_are_those_of_their_libraries():
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    sacrebleu = pytest.importorskip("sacrebleu")
    rouge = rouge_scorer.RougeScorer(["rougeL"])
    by_hand = [rouge.score(reference, prediction)["rougeL"].fmeasure for prediction, reference in PAIRS]
    assert scores("rouge_l").by_example == pytest.approx(by_hand)
    assert scores("rouge_l", ["a b c d"], ["a c d e"]).value == pytest.approx(3 / 4)  # a c d of four and four
    draw = random.Random(0)
    for _ in range(50):
        one, other = (" ".join(draw.choices("abcdefgh", k=draw.randrange(200))) for _ in range(2))
        expected = rouge.score(other, one)["rougeL"].fmeasure
        assert scores("rouge_l", [one], [other]).value == pytest.approx(expected)
    for name, metric in (("chrf", sacrebleu.CHRF()), ("bleu", sacrebleu.BLEU())):
        found = scores(name)
        assert found.value == pytest.approx(metric.corpus_score(PREDICTIONS, [REFERENCES]).score / 100)
        sentence = sacrebleu.BLEU(effective_order=True) if name == "bleu" else metric
        by_sentence = [sentence.sentence_score(p, [r]).score / 100 for p, r in PAIRS]
        assert found.by_example == pytest.approx(by_sentence)


def test_a_missing_library_names_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(TEXT_METRICS, "bleu", TextMetric(text_metrics.bleu, library="no_such_library"))
    with pytest.raises(SpecError, match=r'bleu.* pip install "tunewise\[llm\]"'):
        require_metric("bleu")
    require_metric("exact_match")
