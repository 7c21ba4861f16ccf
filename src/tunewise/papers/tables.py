"""Our numbers beside the printed ones, for the tables that need runs: 2, 3, 4, 5, 14, 15, 16, 17 and 18.

The printed numbers are means over three seeds without an interval; ours have the 95 % t interval over seeds (ratios of
gaps: Fieller's; throughput: of the median step, by order statistics).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tunewise.advise.statistics import Interval
from tunewise.advise.summary import MethodSummary
from tunewise.errors import SpecError
from tunewise.number_format import TWO_SEEDS, plus_minus, widest
from tunewise.papers.presets import SETTINGS, Preset, presets_by_printed
from tunewise.papers.printed import QUANTITIES, PrintedNumber, printed_numbers
from tunewise.papers.runs import PaperComparison
from tunewise.papers.sheet import Entry, Sheet, SheetColumn, label, number

WITHOUT_RUNS = (1, 6)
TABLES = tuple(sorted({*SETTINGS, *WITHOUT_RUNS}))
_COSTS = (14, 15)
_TITLES = {
    2: "performance, main table",
    3: "generalization gap, main table",
    4: "PaCA's family, adapters on all linear layers",
    5: "PaCA's family, adapters on query and value",
    14: "cost, adapters on all linear layers",
    15: "cost, adapters on query and value",
    16: "generalization gap",
    17: "generalization gap over LoRA's",
    18: "performance",
}
_MARK = "†"

ReadNumber = Callable[[MethodSummary], Interval | None]


@dataclass(frozen=True, slots=True)
class TableLine:
    """One printed number and ours, in the printed unit. `ratio` is to LoRA's in the same comparison."""

    printed: PrintedNumber
    ours: Interval | None = None
    ratio: float | None = None
    comparison: PaperComparison | None = None
    widest: float | None = None
    """Half of the scale, where the scale has two ends."""

    @property
    def place(self) -> tuple[str, str]:
        return self.printed.model, self.printed.dataset

    @property
    def difference(self) -> float | None:
        """Ours less the printed number."""
        return None if self.ours is None else self.ours.mean - self.printed.value

    @property
    def within(self) -> bool | None:
        """Whether the printed number lies in our interval; None without an interval."""
        if self.ours is None or self.ours.low is None or self.ours.high is None:
            return None
        return self.ours.low <= self.printed.value <= self.ours.high


def sheet_of(table: int, comparisons: Sequence[PaperComparison], *, everything: bool = False) -> Sheet:
    """The table as a sheet: the presets that have runs, or `everything` that is printed.

    Raises `SpecError` for an unknown table, or where no run belongs to it.
    """
    if table not in SETTINGS:
        raise SpecError(f"table {table}: there are {', '.join(map(str, TABLES))}")
    lines = lines_of(table, comparisons)
    with_runs = {line.place for line in lines if line.ours is not None}
    if not with_runs and not everything:
        command = f"tunewise paper run {presets_by_printed()[lines[0].place].key} --table {table}"
        raise SpecError(f"no finished run belongs to Table {table}; begin with: {command}")
    shown = [line for line in lines if everything or line.place in with_runs]
    has_ratios, is_cost = any(line.printed.ratio is not None for line in shown), table in _COSTS
    ratio_columns = [SheetColumn("ours_over_lora", "ours/LoRA"), SheetColumn("printed_over_lora", "printed/LoRA")]
    columns = [
        SheetColumn("model", "model", right=False),
        SheetColumn("dataset", "data", right=False),
        SheetColumn("method", "method", right=False),
        *([SheetColumn("quantity", "quantity", right=False)] if is_cost else []),
        SheetColumn("ours", "ours"),
        SheetColumn("ours_low", "", "csv"),
        SheetColumn("ours_high", "", "csv"),
        SheetColumn("printed", "printed"),
        SheetColumn("difference", "diff."),
        *(ratio_columns if has_ratios else []),
        SheetColumn("seeds", "seeds"),
        SheetColumn("printed_within", "within"),
        SheetColumn("as_printed", "", "csv"),
        SheetColumn("comparison", "", "csv"),
    ]
    rows = [_row(line, is_cost, has_ratios) for line in shown]
    counts = f"{len(with_runs)} of {len({line.place for line in lines})} printed models on data sets have runs here."
    title = f"Table {table} of arXiv 2606.13767: {_TITLES[table]}, ours beside the printed one"
    return Sheet(title, columns, rows, _legend(table, shown, counts), headings=3 if is_cost else 2)


def lines_of(table: int, comparisons: Sequence[PaperComparison]) -> list[TableLine]:
    """A line for every printed number, in the printed order."""
    by_printed = presets_by_printed()
    return [_line(table, n, by_printed[n.model, n.dataset], comparisons) for n in printed_numbers(table)]


def _line(table: int, printed: PrintedNumber, preset: Preset, comparisons: Sequence[PaperComparison]) -> TableLine:
    comparison, summary = _best(preset, table, printed.catalog, comparisons)
    if comparison is None or summary is None:
        return TableLine(printed)
    read = _reader(table, printed, preset)
    ours = read(summary)
    base = next((s for s in comparison.summaries if s.name == "lora"), None)
    lora = None if base is None or ours is None else read(base)
    ratio = ours.mean / lora.mean if ours is not None and lora is not None and lora.mean else None
    half = widest(summary.metric, summary.is_share) if table in (2, 4, 5, 18) else None
    return TableLine(printed, ours, ratio, comparison, half and half * preset.data.factor)


def _best(
    preset: Preset, table: int, method: str, comparisons: Sequence[PaperComparison]
) -> tuple[PaperComparison | None, MethodSummary | None]:
    """The comparison for a number (as printed before changed ones, then the latest), and its row of the method."""
    wanted = preset.key, SETTINGS[table]
    fitting = [c for c in comparisons if (c.note.preset, c.note.setting) == wanted]
    for comparison in sorted(fitting, key=lambda c: not c.is_as_printed):
        for summary in comparison.summaries:
            if summary.name == method and summary.seeds:
                return comparison, summary
    return None, None


def _reader(table: int, printed: PrintedNumber, preset: Preset) -> ReadNumber:
    """Reads a number from a summary, in the printed unit."""
    if table in (3, 16):
        return lambda s: s.gap
    if table == 17:
        return lambda s: Interval(1.0, 1.0, 1.0, len(s.seeds)) if s.is_reference else s.gap_ratio
    if table in _COSTS:
        readers: dict[str, ReadNumber] = {
            "throughput_samples_per_s": _throughput,
            "runtime_minutes": lambda s: _times(s.seconds, 1 / 60),
            "trainable_parameters": lambda s: _exact(s.trainable),
            "peak_gpu_memory_gb": lambda s: _exact(s.peak_bytes, 1e9),
        }
        return next(readers[key] for key, name in QUANTITIES.items() if name == printed.quantity)
    return lambda s: _times(s.test_metric, preset.data.factor)


def _throughput(summary: MethodSummary) -> Interval | None:
    if summary.cost is None:
        return None
    step, speed = summary.cost.step, summary.cost.samples_per_second
    return Interval(speed, speed * step.median / step.high, speed * step.median / step.low, step.steps)


def _times(interval: Interval | None, factor: float) -> Interval | None:
    if interval is None:
        return None
    low, high = (None if end is None else end * factor for end in (interval.low, interval.high))
    return replace(interval, mean=interval.mean * factor, low=low, high=high)


def _exact(value: float | None, unit: float = 1.0) -> Interval | None:
    return None if value is None else Interval(value / unit, None, None, 1)


# --- texts ----------------------------------------------------------------------------------------


def _row(line: TableLine, is_cost: bool, has_ratios: bool) -> list[Entry]:
    printed, ours, comparison = line.printed, line.ours, line.comparison
    show = _format_like(printed.text)
    as_printed = "" if comparison is None else "yes" if comparison.is_as_printed else "no"
    if ours is None or line.difference is None:
        numbers = [Entry(), Entry(), Entry(), Entry(printed.text, printed.value), Entry()]
    else:
        mark = _MARK if as_printed == "no" else ""
        text = ("−" if ours.mean < 0 else "") + show(abs(ours.mean)) + plus_minus(ours.half_width, show, line.widest)
        sign = "+" if line.difference > 0 else "−" if line.difference < 0 else ""
        numbers = [
            Entry(text + mark, ours.mean),
            Entry("", ours.low),
            Entry("", ours.high),
            Entry(printed.text, printed.value),
            Entry(sign + show(math.fabs(line.difference)), line.difference),
        ]
    return [
        label(printed.model),
        label(printed.dataset),
        label(printed.method),
        *([label(printed.quantity)] if is_cost else []),
        *numbers,
        *([number(line.ratio, ".3f"), number(printed.ratio, ".3f")] if has_ratios else []),
        number(None if ours is None else float(ours.n), ".0f"),
        label({None: "", True: "yes", False: "no"}[line.within]),
        label(as_printed),
        label("" if comparison is None else comparison.folder.name),
    ]


def _format_like(printed: str) -> Callable[[float], str]:
    """Formats numbers with as many digits as the printed one."""
    if "e" in printed.lower():
        digits = len(printed.lower().split("e")[0].replace(".", "").lstrip("-"))
        return lambda value: f"{value:.{digits}g}"
    if "." not in printed:
        return lambda value: f"{value:,.0f}"
    decimals = len(printed.split(".")[1])
    return lambda value: f"{value:.{decimals}f}"


def _legend(table: int, lines: Sequence[TableLine], counts: str) -> list[str]:
    legend = [
        "Ours: mean over seeds with its 95 % t interval; diff.: ours less the printed number; within: whether our "
        "interval contains the printed mean, which is of three seeds and has no interval.",
        counts,
    ]
    if table in (3, 16, 17):
        legend.append(
            "Gap: mean test loss less mean train loss in nats, full splits, eval mode, the weights of the selected "
            "epoch. A method that learned nothing has a small gap: read it beside its score."
        )
    if table == 17:
        legend.append("Ratios of mean gaps over common seeds, with Fieller's interval.")
    if table in _COSTS:
        legend += [
            "Throughput: of the median step of the cost probe; peak memory: the probe's, model included; runtime: "
            "complete runs with evaluation. The printed numbers are of an H100 PCIe: compare ratios.",
            "s-cLA and s-r-c3LA compute cLA and r-c3LA by gathering columns, as is always done here.",
        ]
    elif any(line.ours is not None and line.ours.n == 2 for line in lines):
        legend.append(TWO_SEEDS)
    changed = [line.comparison.note for line in lines if line.comparison and not line.comparison.is_as_printed]
    if changed:
        differences = dict.fromkeys(f"{note.preset}: {'; '.join(note.changes)}" for note in changed)
        legend.append(f"{_MARK} Differs from the paper's experiment: {'. '.join(differences)}.")
    return legend
