"""Our numbers beside the printed ones, for the tables that need runs: 2, 3, 4, 5, 14, 15, 16, 17 and 18.

The printed numbers are means over three seeds without an interval; ours have the 95 % t interval over seeds (ratios of
gaps: Fieller's; throughput: of the median step, by order statistics).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunewise.advise.statistics import Interval
from tunewise.advise.summary import MethodSummary
from tunewise.errors import SpecError
from tunewise.number_format import TWO_SEEDS, plus_minus, widest
from tunewise.papers import bounds, counts
from tunewise.papers.presets import SETTINGS, Preset, presets_by_printed
from tunewise.papers.printed import QUANTITIES, PrintedNumber, printed_numbers
from tunewise.papers.runs import PaperComparison, read_comparisons
from tunewise.papers.sheet import Sheet, SheetColumn

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
    def mean(self) -> float | None:
        return None if self.ours is None else self.ours.mean

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

    @property
    def as_printed(self) -> str:
        """Whether ours is of the paper's experiment."""
        return "" if self.comparison is None else "yes" if self.comparison.is_as_printed else "no"

    @property
    def ours_text(self) -> str:
        """The mean with as many digits as the printed number, and half of its interval."""
        if self.ours is None:
            return ""
        show = _format_like(self.printed.text)
        text = ("−" if self.ours.mean < 0 else "") + show(abs(self.ours.mean))
        return text + plus_minus(self.ours.half_width, show, self.widest) + (_MARK if self.as_printed == "no" else "")

    @property
    def difference_text(self) -> str:
        if self.difference is None:
            return ""
        sign = "+" if self.difference > 0 else "−" if self.difference < 0 else ""
        return sign + _format_like(self.printed.text)(math.fabs(self.difference))


_QUANTITY: SheetColumn[TableLine] = SheetColumn("quantity", "quantity", lambda line: line.printed.quantity, right=False)
_COLUMNS: list[SheetColumn[TableLine]] = [
    SheetColumn("model", "model", lambda line: line.printed.model, right=False),
    SheetColumn("dataset", "data", lambda line: line.printed.dataset, right=False),
    SheetColumn("method", "method", lambda line: line.printed.method, right=False),
    SheetColumn(
        "ours", "ours", lambda line: None if line.ours is None else line.ours.mean, lambda line: line.ours_text
    ),
    SheetColumn("ours_low", "", lambda line: None if line.ours is None else line.ours.low),
    SheetColumn("ours_high", "", lambda line: None if line.ours is None else line.ours.high),
    SheetColumn("printed", "printed", lambda line: line.printed.value, lambda line: line.printed.text),
    SheetColumn("difference", "diff.", lambda line: line.difference, lambda line: line.difference_text),
    SheetColumn("ours_over_lora", "ours/LoRA", lambda line: line.ratio, ".3f"),
    SheetColumn("printed_over_lora", "printed/LoRA", lambda line: line.printed.ratio, ".3f"),
    SheetColumn("seeds", "seeds", lambda line: None if line.ours is None else float(line.ours.n), ".0f"),
    SheetColumn("printed_within", "within", lambda line: {None: "", True: "yes", False: "no"}[line.within]),
    SheetColumn("as_printed", "", lambda line: line.as_printed),
    SheetColumn("comparison", "", lambda line: "" if line.comparison is None else line.comparison.folder.name),
]


def make_sheet(table: int, runs: Path, *, everything: bool = False) -> Sheet:
    """Any table of the paper; all but 1 and 6 with the runs in a folder. Raises `SpecError` for an unknown table."""
    if table in WITHOUT_RUNS:
        return bounds.sheet() if table == 1 else counts.sheet()
    if table not in SETTINGS:
        raise SpecError(f"table {table}: there are {', '.join(map(str, TABLES))}")
    return sheet_of(table, read_comparisons(runs), everything=everything)


def sheet_of(table: int, comparisons: Sequence[PaperComparison], *, everything: bool = False) -> Sheet:
    """The table as a sheet: the presets that have runs, or `everything` that is printed. Raises `SpecError` where no
    run belongs to it."""
    lines = lines_of(table, comparisons)
    with_runs = {line.place for line in lines if line.ours is not None}
    if not with_runs and not everything:
        command = f"tunewise paper run {presets_by_printed()[lines[0].place].key} --table {table}"
        raise SpecError(f"no finished run belongs to Table {table}; begin with: {command}")
    shown = [line for line in lines if everything or line.place in with_runs]
    is_cost = table in _COSTS
    columns = [*_COLUMNS[:3], *([_QUANTITY] if is_cost else []), *_COLUMNS[3:]]
    if all(line.printed.ratio is None for line in shown):
        columns = [column for column in columns if "over_lora" not in column.key]
    counts = f"{len(with_runs)} of {len({line.place for line in lines})} printed models on data sets have runs here."
    title = f"Table {table} of arXiv 2606.13767: {_TITLES[table]}, ours beside the printed one"
    return Sheet(title, columns, shown, _legend(table, shown, counts), headings=3 if is_cost else 2)


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
            "Gap: mean test loss less mean train loss (of at most 512 training examples, a fixed sample) in nats, eval "
            "mode, the weights of the selected epoch. A method that learned nothing has a small gap: read it beside "
            "its score."
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
