"""Generated answers of the methods side by side, on a sample of the test items."""

from __future__ import annotations

from tunewise.number_format import metric_name
from tunewise.pages.section import Example, Section
from tunewise.report.data import ReportData
from tunewise.store.answers import Answer

_MOST_ITEMS = 20
_MOST_CHARACTERS = 2000


def section(data: ReportData) -> Section | None:
    """None where no run generated anything."""
    metric = data.summaries[0].metric if data.summaries else ""
    by_method: dict[str, dict[tuple[str, str], Answer]] = {}
    seeds: dict[str, int] = {}
    for record in data.records:
        answers = [answer for answer in data.answers.get(record.id, ()) if metric in answer.scores]
        label = record.spec.method.label
        if answers and label not in by_method:
            by_method[label] = {(answer.prompt, answer.reference): answer for answer in answers}
            seeds[label] = record.spec.seed
    if not by_method:
        return None
    items = list(next(iter(by_method.values())))
    shown = items[:: -(-len(items) // _MOST_ITEMS)]
    examples = [
        Example(
            title=_cut(" ".join(prompt.split()), 100),
            texts=[
                ("prompt", _cut(prompt)),
                ("reference", _cut(reference)),
                *(
                    (f"{label} ({answers[item].scores[metric]:.3g})", _cut(answers[item].prediction))
                    for label, answers in by_method.items()
                    if (item := (prompt, reference)) in answers
                ),
            ],
        )
        for prompt, reference in shown
    ]
    runs = ", ".join(f"{label} at seed {seed}" for label, seed in seeds.items())
    text = (
        f"{len(shown)} of {len(items)} test items at even distances; behind each method its {metric_name(metric)} "
        f"on the item. Runs: {runs}. All answers are in each run's predictions.jsonl."
    )
    return Section("answers", "Answers side by side", [text], examples=examples)


def _cut(text: str, most: int = _MOST_CHARACTERS) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
