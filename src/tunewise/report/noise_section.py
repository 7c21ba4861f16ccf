"""The section on noise: intervals over seeds and over test items."""

from __future__ import annotations

from collections.abc import Callable

from tunewise import number_format as numbers
from tunewise.advise.summary import MethodSummary
from tunewise.pages.section import Section, Table
from tunewise.report.data import ReportData

_ITEM_TESTS = {
    "McNemar": "McNemar's exact test and the interval of Agresti and Min",
    "paired by item": "the answers of both methods to each item, mean over seeds (adjusted Wald)",
    "paired scores": "the scores of both methods' answers to each item (for BLEU and chrF those of sentences), mean "
    "over seeds (paired t)",
    "item bootstrap": "an item bootstrap of 1,000 draws",
}


def section(data: ReportData) -> Section | None:
    """None where no two methods can be compared."""
    reference = next((s for s in data.summaries if s.is_reference and s.seeds), None)
    others = [s for s in data.summaries if reference and not s.is_reference and s.seeds]
    if reference is None or not others:
        return None
    columns = [
        "method",
        "difference",
        "over seeds, 95 %",
        "over test items, 95 %",
        "p by item",
        "unseen up to",
    ]
    gap_columns = ["method", "gap, nats", "difference", "over seeds, 95 %", f"× {reference.label}'s", "95 %", ""]
    rows = [_row(s) for s in others]
    text = (
        f"Differences of the test {numbers.metric_name(reference.metric)} to {reference.label}'s, and how much other "
        "seeds or other test items could change them. “Better” and “worse” in the table above are decided over seeds."
    )
    tables = [
        Table(columns, rows, "The test metric"),
        Table(gap_columns, [_gap_row(s) for s in others], "The generalization gap"),
    ]
    return Section("noise", "How sure the differences are", [text], tables=tables, notes=_notes(others, reference))


def _row(method: MethodSummary) -> list[str]:
    compared, items = method.metric_comparison, method.item_comparison
    unit = numbers.points if method.is_share else _plain
    widest = numbers.widest(method.metric, method.is_share)

    def end(value: float) -> str:
        return numbers.difference_end(value, method.is_share, widest)

    if compared is None or compared.difference is None:
        return [method.label, *[numbers.MISSING] * 5]
    return [
        method.label,
        unit(compared.difference.mean),
        _between(compared.low, compared.high, end),
        _between(items.low, items.high, unit) if items else numbers.MISSING,
        f"{items.p:.2g}" if items else numbers.MISSING,
        numbers.MISSING if compared.missed is None else end(compared.missed).replace("+", ""),
    ]


def _gap_row(method: MethodSummary) -> list[str]:
    compared, ratio = method.gap_comparison, method.gap_ratio
    if compared is None or compared.difference is None or method.gap is None:
        return [method.label, *[numbers.MISSING] * 6]
    verdict = {"better": "smaller", "worse": "larger"}.get(compared.verdict, compared.verdict)
    return [
        method.label,
        numbers.nats(method.gap.mean),
        _nats(compared.difference.mean),
        _between(compared.low, compared.high, _nats),
        f"{ratio.mean:.2f}" if ratio else numbers.MISSING,
        _between(ratio.low, ratio.high, "{:.2f}".format) if ratio else numbers.MISSING,
        verdict,
    ]


def _notes(others: list[MethodSummary], reference: MethodSummary) -> list[str]:
    corrected = f", Holm-corrected over the {len(others)} methods compared with {reference.label}" if others[1:] else ""
    notes = [
        f"Over seeds: paired t intervals{corrected}. “Unseen up to” is half of the interval's width: a true difference "
        "of that size could have remained unnoticed."
    ]
    with_items = [s for s in others if s.item_comparison]
    if with_items:
        tests = dict.fromkeys(_ITEM_TESTS[s.item_comparison.test] for s in with_items if s.item_comparison)
        notes.append(
            f"Over test items: {', '.join(tests)}, on the same {with_items[0].test_items} items; not corrected for the "
            "number of methods."
        )
    doubtful = [s.label for s in with_items if _is_doubtful(s)]
    if doubtful:
        notes.append(
            f"Different from {reference.label} over seeds, but not over test items: {', '.join(doubtful)}. Another "
            "test set might give another answer."
        )
    notes.append(
        f"Gaps relative to {reference.label}'s are ratios of means over seeds with Fieller's paired interval, which is "
        f"left out where {reference.label}'s own gap may be zero."
    )
    return notes


def _is_doubtful(method: MethodSummary) -> bool:
    """Whether the difference is shown over seeds but not over test items."""
    compared, items = method.metric_comparison, method.item_comparison
    shown = compared is not None and compared.verdict in ("better", "worse")
    return shown and items is not None and not items.excludes_zero


def _between(low: float | None, high: float | None, unit: Callable[[float], str]) -> str:
    return numbers.MISSING if low is None or high is None else f"{unit(low)} to {unit(high)}"


def _nats(difference: float) -> str:
    return f"{difference:+.4f}".replace("-", "−")


def _plain(difference: float) -> str:
    return f"{difference:+.3g}".replace("-", "−")
