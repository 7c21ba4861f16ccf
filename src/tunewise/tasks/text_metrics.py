"""Scores of generated texts against references, all from 0 to 1: of the whole split, and of each example."""

from __future__ import annotations

import importlib.util
import json
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import fmean
from typing import Any

from tunewise.errors import SpecError


@dataclass(frozen=True)
class TextScore:
    """Score of a split, and of each of its examples; `by_example` is empty where there is none."""

    value: float
    by_example: list[float]


Texts = Sequence[str]


@dataclass(frozen=True)
class TextMetric:
    """A metric from (predictions, references); `library` is the module that it needs."""

    score: Callable[[Texts, Texts], TextScore]
    library: str | None = None

    @property
    def is_available(self) -> bool:
        """Whether its library is installed."""
        return self.library is None or importlib.util.find_spec(self.library) is not None


def require_metric(name: str) -> None:
    """Raise `SpecError` where the library of a metric of `TEXT_METRICS` is not installed."""
    metric = TEXT_METRICS[name]
    if not metric.is_available:
        raise SpecError(f'metric {name!r} needs {metric.library}; run: pip install "tunewise[llm]"')


def normalize_spaces(text: str) -> str:
    """The text with every run of white space as one blank and none at its ends."""
    return " ".join(text.split())


def normalize_answer(text: str) -> str:
    """Lower case without punctuation, articles and further white space, as SQuAD's evaluation script compares."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return normalize_spaces(re.sub(r"\b(a|an|the)\b", " ", kept))


def exact_match(prediction: str, reference: str) -> bool:
    return normalize_spaces(prediction) == normalize_spaces(reference)


def normalized_match(prediction: str, reference: str) -> bool:
    return normalize_answer(prediction) == normalize_answer(reference)


def token_f1(prediction: str, reference: str) -> float:
    """F1 of the words that both texts have, as often as both have them (SQuAD 2; two empty texts agree)."""
    predicted, expected = (normalize_answer(text).split() for text in (prediction, reference))
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected))


def numeric_match(prediction: str, reference: str) -> bool:
    """Whether the last numbers in both texts have one value: 1,234.50 is 1234.5."""
    number = last_number(prediction)
    return number is not None and number == last_number(reference)


_NUMBER = re.compile(r"(?:(?<!\w)-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,4}\b)?")


def last_number(text: str) -> Decimal | None:
    """The last number in a text, with or without commas between its digits."""
    numbers: list[str] = _NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def json_valid(prediction: str, reference: str) -> bool:
    return parse_json(prediction) is not None


def json_match(prediction: str, reference: str) -> bool:
    """Whether both are JSON of one value: the order of keys, white space and 1.0 for 1 don't matter."""
    parsed = parse_json(prediction)
    return parsed is not None and parsed == parse_json(reference)


def parse_json(text: str) -> tuple[Any] | None:
    """The value of a JSON text in a tuple of one; None where it is no JSON. Numbers are exact, and never equal true."""

    def number(digits: str) -> tuple[str, Decimal]:
        return ("number", Decimal(digits))

    def refuse(constant: str) -> None:
        raise ValueError(constant)  # NaN and Infinity are not JSON

    try:
        return (json.loads(text, parse_int=number, parse_float=number, parse_constant=refuse),)
    except (ValueError, ArithmeticError, RecursionError):
        return None


def _mean_of(score: Callable[[str, str], float]) -> Callable[[Texts, Texts], TextScore]:
    def metric(predictions: Texts, references: Texts) -> TextScore:
        scores = [float(score(*pair)) for pair in zip(predictions, references, strict=True)]
        return TextScore(fmean(scores), scores)

    return metric


def rouge_l(prediction: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words (Lin, 2004), as the package rouge-score computes it."""
    predicted, expected = (re.findall("[a-z0-9]+", text.lower()) for text in (prediction, reference))
    common = common_subsequence(predicted, expected)
    return 2 * common / (len(predicted) + len(expected)) if common else 0.0


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table as the bits of one number (Hyyro, 2004): a hundred
    times faster than a table for texts of 200 words."""
    places: Counter[str] = Counter()
    for place, word in enumerate(a):
        places[word] |= 1 << place
    row = everything = (1 << len(a)) - 1
    for word in b:
        matches = row & places[word]
        row = ((row + matches) | (row - matches)) & everything
    return len(a) - row.bit_count()


def chrf(predictions: Texts, references: Texts) -> TextScore:
    """F-score of character n-grams over the corpus (Popovic, 2015): sacrebleu's, divided by 100."""
    import sacrebleu

    corpus = sacrebleu.corpus_chrf(predictions, [references]).score
    pairs = zip(predictions, references, strict=True)
    return TextScore(corpus / 100, [sacrebleu.sentence_chrf(one, [other]).score / 100 for one, other in pairs])


def bleu(predictions: Texts, references: Texts) -> TextScore:
    """BLEU of the corpus (Papineni et al., 2002): sacrebleu's, divided by 100."""
    import sacrebleu

    corpus = sacrebleu.corpus_bleu(predictions, [references], force=True).score  # no warning for tokenised texts
    pairs = zip(predictions, references, strict=True)
    return TextScore(corpus / 100, [sacrebleu.sentence_bleu(one, [other]).score / 100 for one, other in pairs])


TEXT_METRICS: dict[str, TextMetric] = {
    "exact_match": TextMetric(_mean_of(exact_match)),
    "normalized_match": TextMetric(_mean_of(normalized_match)),
    "token_f1": TextMetric(_mean_of(token_f1)),
    "numeric_match": TextMetric(_mean_of(numeric_match)),
    "json_valid": TextMetric(_mean_of(json_valid)),
    "json_match": TextMetric(_mean_of(json_match)),
    "rouge_l": TextMetric(_mean_of(rouge_l)),
    "chrf": TextMetric(chrf, library="sacrebleu"),
    "bleu": TextMetric(bleu, library="sacrebleu"),
}
