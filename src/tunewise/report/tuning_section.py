"""The learning-rate search: every trial of every method, what was chosen, and where budgets were not equal."""

from __future__ import annotations

from tunewise import number_format as numbers
from tunewise.pages.section import Section, Table
from tunewise.report.data import ReportData
from tunewise.store.records import MethodTuning, Trial, TuningReport


def section(data: ReportData) -> Section | None:
    """None where no rate was searched for."""
    tuning = data.tuning
    if tuning is None:
        return None
    searched = [row for row in tuning.methods if not row.given]
    notes = [note for row in searched if (note := _edge(row, tuning))]
    notes += [f"{row.method}: {row.note}." for row in searched if row.note]
    return Section(
        key="tuning",
        title="Learning rates",
        paragraphs=_paragraphs(tuning, searched),
        tables=[_chosen(tuning), *([_trials(tuning, searched)] if searched else [])],
        notes=notes,
    )


def _paragraphs(tuning: TuningReport, searched: list[MethodTuning]) -> list[str]:
    trials = " or ".join(map(str, sorted({len(row.trials) for row in searched})))
    paragraphs = [
        f"Each rate was searched for with {trials} trials, a factor of {tuning.settings.factor:g} from one rate to the "
        f"next around the method's default, at seed {tuning.seed}, which no run below has. The best "
        f"{tuning.objective} was chosen; test scores were not used."
    ]
    given = [row.method for row in tuning.methods if row.given]
    if given:
        paragraphs.append(f"Given, not tuned: {', '.join(given)}; the budgets are unequal there.")
    return paragraphs


def _chosen(tuning: TuningReport) -> Table:
    rows = []
    for row in tuning.methods:
        best = next((t for t in row.trials if t.rate == row.chosen and t.status == "done"), None)
        rows.append(
            [
                row.method,
                numbers.rate(row.chosen) + (", given, not tuned" if row.given else ""),
                _value(best.value) if best else numbers.MISSING,
                str(len(row.trials)),
                str(sum(t.epochs for t in row.trials)),
            ]
        )
    return Table(
        columns=["method", "rate used", f"best {tuning.objective}", "trials", "epochs spent"],
        rows=rows,
        caption="The rate of each method and what the search for it cost",
    )


def _trials(tuning: TuningReport, searched: list[MethodTuning]) -> Table:
    longest = max(len(row.trials) for row in searched)
    rows = []
    for row in searched:
        cells = [_cell(trial, row) for trial in sorted(row.trials, key=lambda t: t.rate)]
        rows.append([row.method, *cells, *[numbers.MISSING] * (longest - len(cells))])
    return Table(
        columns=["method", *(f"trial {i + 1}" for i in range(longest))],
        rows=rows,
        caption=f"Every trial, from the lowest rate: rate, {tuning.objective} of its best epoch, what became of it",
    )


def _cell(trial: Trial, row: MethodTuning) -> str:
    if trial.status == "done":
        outcome = ", chosen" if trial.rate == row.chosen and row.note is None else ""
    else:
        outcome = f", {trial.status}"
    value = "" if trial.value is None else f": {_value(trial.value)}"
    return f"{numbers.rate(trial.rate)}{value}{outcome}"


def _edge(row: MethodTuning, tuning: TuningReport) -> str:
    if row.edge is None:
        return ""
    further = "higher" if row.edge == "highest" else "lower"
    hint = "" if tuning.settings.extend else "; `extend` under `tuning` spends further trials, the same for all methods"
    return (
        f"{row.method}: the best rate, {numbers.rate(row.chosen)}, is the {row.edge} that was tried, so a {further} "
        f"one might do better{hint}."
    )


def _value(value: float | None) -> str:
    return numbers.MISSING if value is None else numbers.nats(value)
