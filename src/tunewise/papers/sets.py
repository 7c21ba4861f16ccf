"""The fourteen data sets: hub repositories, readers of their public files, splits and metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tunewise.errors import SpecError, suggest_nearest
from tunewise.papers import language_sets, text_sets
from tunewise.papers.reading import ReadParts


@dataclass(frozen=True, slots=True)
class PaperSet:
    """One data set. `readers` are tried in turn; scores of `metric` times `factor` have the paper's unit.

    Parts without a file are split from train by the fractions. Where the test part has no file or no labels, half of
    the validation part is the test part.
    """

    key: str
    printed: str
    task: str
    metric: str
    hub: str
    """Repository and files: `nyu-mll/glue/mrpc/*`; a revision after @."""
    readers: tuple[ReadParts, ...] = ()
    validation_size: float = 0.1
    test_size: float = 0.2
    select: Literal["loss", "metric"] = "loss"
    factor: float = 100.0
    classes: int = 2
    """Of a classifier; for counting."""
    caveat: str = ""
    """A property of the set that affects scores; added to the notes of the data."""

    @property
    def has_texts(self) -> bool:
        """Whether the inputs are texts (they have readers); otherwise images."""
        return bool(self.readers)


_PARQUET = "@refs%2Fconvert%2Fparquet"
_GLUE = (text_sets.read_glue_pairs,)

_ROWS = [
    PaperSet("mrpc", "MRPC", "text", "accuracy", "nyu-mll/glue/mrpc/*", (text_sets.read_mrpc, *_GLUE)),
    PaperSet(
        "cola", "CoLA", "text", "matthews", "nyu-mll/glue/cola/*",
        (text_sets.read_raw_cola, text_sets.read_cola), select="metric",
    ),
    PaperSet("rte", "RTE", "text", "accuracy", "nyu-mll/glue/rte/*", _GLUE),
    PaperSet("stsb", "STS-B", "regression", "pearson", "nyu-mll/glue/stsb/*", (text_sets.read_raw_stsb, *_GLUE)),
    PaperSet(
        "trec50", "TREC-50", "text", "accuracy", f"CogComp/trec{_PARQUET}/default/*",
        (text_sets.read_raw_trec, text_sets.read_trec), classes=50,
    ),
    PaperSet(
        "paws", "PAWS", "text", "accuracy", "google-research-datasets/paws/labeled_final/*",
        (text_sets.read_paws_without_train, *_GLUE),
    ),
    PaperSet(
        "e2e", "E2E", "causal", "perplexity", f"tuetschek/e2e_nlg{_PARQUET}/default/*",
        (language_sets.read_e2e,), factor=1.0,
        caveat="A meaning has several references; all are used in training and scoring.",
    ),
    PaperSet(
        "django", "DJANGO", "generation", "exact_match", "AhmedSSoliman/DJANGO/*",
        (language_sets.read_raw_django, language_sets.read_django),
        caveat="Many lines of Django's code repeat: exact match also rewards memorized lines.",
    ),
    PaperSet(
        "openbookqa", "OpenBookQA", "text", "accuracy", "allenai/openbookqa/main/*",
        (language_sets.read_openbookqa,), classes=4,
    ),
    PaperSet(
        "folio", "FOLIO", "text", "accuracy", "tasksource/folio/folio_v2_*.jsonl",
        (language_sets.read_folio,), classes=3,
    ),
    PaperSet(
        "logiqa", "LogiQA", "text", "accuracy", "datatune/LogiQA2.0/MRC/*.txt", (language_sets.read_logiqa,), classes=4
    ),
    PaperSet(
        "clutrr", "CLUTRR", "text", "accuracy", f"CLUTRR/v1{_PARQUET}/gen_train234_test2to10/*",
        (language_sets.read_clutrr,), classes=18,
        caveat="Train and validation have 2 to 4 steps of kinship, test 2 to 10: a shift in length, by design.",
    ),
    PaperSet(
        "officehome", "OfficeHome", "image", "accuracy", "flwrlabs/office-home/data/*",
        validation_size=0.15, test_size=0.15, classes=65,
    ),
    PaperSet(
        "cifar10", "CIFAR-10", "image", "accuracy", "uoft-cs/cifar10/plain_text/*",
        validation_size=0.05, classes=10,
    ),
]  # fmt: skip

SETS: dict[str, PaperSet] = {row.key: row for row in _ROWS}


def get_set(key: str) -> PaperSet:
    """Raises `SpecError` for an unknown key."""
    if key not in SETS:
        raise SpecError(f"the paper has no data set {key!r}{suggest_nearest(key, SETS)}")
    return SETS[key]
