"""The report section of forgetting: drift of the features, and the language-model loss where there is a head."""

from __future__ import annotations

from tunewise.measures.base import Measure, SectionData
from tunewise.measures.forgetting.compute import ForgettingResult, compute
from tunewise.measures.section_parts import bars_panel, plus_minus
from tunewise.pages.section import Section, Table
from tunewise.registry import MEASURES

_KINDS = {"masked": "masked-language loss", "causal": "next-token loss"}


def section(data: SectionData[ForgettingResult]) -> Section:
    drift = data.by_seed(lambda result: result.drift)
    change = data.by_seed(lambda result: result.loss.difference if result.loss else None)
    loss = data.first.loss
    paragraphs = [
        f"What fine-tuning did to the base model's own behaviour, on {data.first.source}: how far the mean of the last "
        "hidden states moved, relative to its length. A method that solves the task and hardly moves the rest keeps "
        "more of the model for other uses.",
    ]
    axis = "||f1 - f0|| / ||f0||"
    panels = [bars_panel("drift-figure", "Drift of the features", drift, data.marks, axis=axis)]
    columns = ["method", "drift", "turn (1 - cos)", "similarity (CKA)"]
    if loss is None:
        paragraphs.append("The checkpoint has no language-model head, so there is no loss to compare.")
    else:
        kind = _KINDS[loss.kind]
        title = f"Rise of the {kind}"
        panels.append(bars_panel("forgotten-figure", title, change, data.marks, axis="nats", unit="nats"))
        columns += [f"{kind} before", "change"]
    rows = []
    for label in drift:
        results = data.of_method(label)
        row = [label, plus_minus(list(drift[label].values()), ".3f")]
        row += [f"{sum(values) / len(values):.3f}" for values in zip(*((r.turn, r.similarity) for r in results))]
        if loss is not None:
            row += [f"{loss.before:.3f}", plus_minus(list(change[label].values()), "+.3f") if label in change else ""]
        rows.append(row)
    return Section("forgetting", "Forgetting", paragraphs, panels, [Table(columns, rows)], notes=data.missing)


MEASURES.register("forgetting", Measure("forgetting", "forgetting", compute, ForgettingResult, section))
