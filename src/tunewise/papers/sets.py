"""The fourteen data sets: where each is had, in which forms it is read, how it is split and scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tunewise.errors import SpecError, suggest_nearest
from tunewise.papers import language_sets, text_sets
from tunewise.papers.reading import Form


@dataclass(frozen=True, slots=True)
class PaperSet:
    """One data set. `forms` are tried in turn. Scores of `metric` are multiplied by `factor` to be in the paper's unit.

    Parts without a file are cut from train by the fractions; where the test part has no file or no labels, and there
    is a validation part, half of that is the test part.
    """

    key: str
    printed: str
    task: str
    metric: str
    hub: str
    """Repository, and after it the files that are wanted: `nyu-mll/glue/mrpc/*`; a revision after @."""
    forms: tuple[Form, ...] = ()
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    select: Literal["loss", "metric"] = "loss"
    factor: float = 100.0
    classes: int = 2
    """Of a classifier; for counting."""
    caveat: str = ""
    """What a reader of scores should know of the set itself; stands among its notes."""

    @property
    def of_texts(self) -> bool:
        """Whether the inputs are texts, which are read in one of `forms`; else they are images."""
        return bool(self.forms)


_PARQUET = "@refs%2Fconvert%2Fparquet"
_GLUE = (text_sets.glue_pairs,)

_ROWS = [
    PaperSet("mrpc", "MRPC", "text", "accuracy", "nyu-mll/glue/mrpc/*", (text_sets.mrpc, *_GLUE)),
    PaperSet(
        "cola",
        "CoLA",
        "text",
        "matthews",
        "nyu-mll/glue/cola/*",
        (text_sets.cola_raw, text_sets.cola),
        select="metric",
    ),
    PaperSet("rte", "RTE", "text", "accuracy", "nyu-mll/glue/rte/*", _GLUE),
    PaperSet("stsb", "STS-B", "regression", "pearson", "nyu-mll/glue/stsb/*", (text_sets.stsb_raw, *_GLUE)),
    PaperSet(
        "trec50", "TREC-50", "text", "accuracy", f"CogComp/trec{_PARQUET}/default/*",
        (text_sets.trec_raw, text_sets.trec), classes=50,
    ),
    PaperSet(
        "paws", "PAWS", "text", "accuracy", "google-research-datasets/paws/labeled_final/*",
        (text_sets.paws_without_train, *_GLUE),
    ),
    PaperSet(
        "e2e", "E2E", "causal", "perplexity", f"tuetschek/e2e_nlg{_PARQUET}/default/*",
        (language_sets.e2e,), factor=1.0,
        caveat="A meaning has several references; all of them are learned and scored.",
    ),
    PaperSet(
        "django", "DJANGO", "generation", "exact_match", "AhmedSSoliman/DJANGO/*",
        (language_sets.django_raw, language_sets.django),
        caveat="Many lines of Django's code recur: exact match rewards code that was seen in training, too.",
    ),
    PaperSet(
        "openbookqa", "OpenBookQA", "text", "accuracy", "allenai/openbookqa/main/*",
        (language_sets.openbookqa,), classes=4,
    ),
    PaperSet(
        "folio", "FOLIO", "text", "accuracy", "tasksource/folio/folio_v2_*.jsonl", (language_sets.folio,), classes=3
    ),
    PaperSet(
        "logiqa", "LogiQA", "text", "accuracy", "datatune/LogiQA2.0/MRC/*.txt", (language_sets.logiqa,), classes=4
    ),
    PaperSet(
        "clutrr", "CLUTRR", "text", "accuracy", f"CLUTRR/v1{_PARQUET}/gen_train234_test2to10/*",
        (language_sets.clutrr,), classes=18,
        caveat="Train and validation hold 2 to 4 steps of kinship, test 2 to 10: a shift in length, by design.",
    ),
    PaperSet(
        "officehome", "OfficeHome", "image", "accuracy", "flwrlabs/office-home/data/*",
        validation_fraction=0.15, test_fraction=0.15, classes=65,
    ),
    PaperSet(
        "cifar10", "CIFAR-10", "image", "accuracy", "uoft-cs/cifar10/plain_text/*",
        validation_fraction=0.05, classes=10,
    ),
]  # fmt: skip

SETS: dict[str, PaperSet] = {row.key: row for row in _ROWS}


def get_set(key: str) -> PaperSet:
    """Raises `SpecError` for a name that is none of the fourteen."""
    if key not in SETS:
        raise SpecError(f"the paper has no data set {key!r}{suggest_nearest(key, SETS)}")
    return SETS[key]
