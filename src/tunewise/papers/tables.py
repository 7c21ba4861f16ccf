"""Ours beside the printed ones, for the tables that need runs: 2, 3, 4, 5, 14, 15, 16, 17 and 18.

The printed numbers are means over three seeds without an interval; ours have the 95 % t interval over seeds (ratios of
gaps: Fieller's; throughput: of the median step, by order statistics).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunewise.advise.statistics import Interval
from tunewise.advise.summary import MethodSummary
from tunewise.errors import SpecError
from tunewise.number_format import TWO_SEEDS, plus_minus, widest
from tunewise.papers.presets import SETTINGS, Pair, pairs
from tunewise.papers.printed import QUANTITIES, Cell, cells
from tunewise.papers.runs import Ran
from tunewise.papers.sheet import Column, Entry, Sheet, name

WITHOUT_RUNS = (1, 6)
TABLES = tuple(sorted({*SETTINGS, *WITHOUT_RUNS}))
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


@dataclass(frozen=True, slots=True)
class Line:
    """One printed cell and what we have for it, in the printed unit. The ratio is to LoRA's in the same comparison."""

    cell: Cell
    ours: Interval | None
    ratio: float | None
    ran: Ran | None
    widest: float | None = None
    """Half of the scale that the number is on, where it has two ends."""

    @property
    def difference(self) -> float | None:
        """Ours less the printed one."""
        return None if self.ours is None else self.ours.mean - self.cell.value

    @property
    def within(self) -> bool | None:
        """Whether the printed number lies in our interval; None where there is none."""
        if self.ours is None or self.ours.low is None or self.ours.high is None:
            return None
        return self.ours.low <= self.cell.value <= self.ours.high


def sheet_of(table: int, found: Sequence[Ran], *, everything: bool = False) -> Sheet:
    """The table as a sheet: the pairs that have runs, or `everything` that is printed.

    Raises `SpecError` for a table that is not among those, or where no run belongs to it.
    """
    if table not in SETTINGS:
        raise SpecError(f"table {table}: there are {', '.join(map(str, TABLES))}")
    lines = lines_of(table, found)
    known = {(line.cell.model, line.cell.dataset) for line in lines if line.ours is not None}
    if not known and not everything:
        example = next(pair for pair in pairs() if (pair.model.printed, pair.data.printed) == _place(lines[0].cell))
        raise SpecError(
            f"no finished run belongs to Table {table}; begin with: tunewise paper run {example.key} --table {table}"
        )
    shown = [line for line in lines if everything or _place(line.cell) in known]
    ratios = any(line.cell.ratio is not None for line in shown)
    of_cost = table in (14, 15)
    columns = [
        Column("model", "model", right=False),
        Column("dataset", "data", right=False),
        Column("method", "method", right=False),
        *([Column("quantity", "quantity", right=False)] if of_cost else []),
        Column("ours", "ours"),
        Column("ours_low", "", "csv"),
        Column("ours_high", "", "csv"),
        Column("printed", "printed"),
        Column("difference", "diff."),
        *([Column("ours_over_lora", "ours/LoRA"), Column("printed_over_lora", "print/LoRA")] if ratios else []),
        Column("seeds", "seeds"),
        Column("printed_within", "within"),
        Column("as_printed", "", "csv"),
        Column("comparison", "", "csv"),
    ]
    rows = [_row(line, of_cost, ratios) for line in shown]
    printed = {_place(line.cell) for line in lines}
    title = f"Table {table} of arXiv 2606.13767: {_TITLES[table]}, ours beside the printed one"
    return Sheet(title, columns, rows, _legend(table, shown, len(known), len(printed)))


def lines_of(table: int, found: Sequence[Ran]) -> list[Line]:
    """A line for every printed cell, in the printed order."""
    by_name = {(pair.model.printed, pair.data.printed): pair for pair in pairs()}
    lines = []
    for cell in cells(table):
        pair = by_name[_place(cell)]
        ran, summary = _best(pair, table, cell.catalog, found)
        if ran is None or summary is None:
            lines.append(Line(cell, None, None, None))
            continue
        value = _value(table, cell, pair)
        ours = value(summary)
        base = next((s for s in ran.summaries if s.name == "lora"), None)
        over = None if base is None or ours is None else value(base)
        ratio = ours.mean / over.mean if ours is not None and over is not None and over.mean else None
        half = None if table in (3, 14, 15, 16, 17) else widest(summary.metric, summary.is_share)
        lines.append(Line(cell, ours, ratio, ran, half and half * pair.data.factor))
    return lines


def _best(pair: Pair, table: int, method: str, found: Sequence[Ran]) -> tuple[Ran | None, MethodSummary | None]:
    """The comparison that a cell is taken from: one that is as the paper ran it before one that isn't, the latest of
    each; and of it the row of the method."""
    fitting = [ran for ran in found if ran.known.pair == pair.key and ran.known.setting == SETTINGS[table]]
    for ran in sorted(fitting, key=lambda ran: not ran.whole):
        for summary in ran.summaries:
            if summary.name == method and summary.seeds:
                return ran, summary
    return None, None


def _value(table: int, cell: Cell, pair: Pair) -> Callable[[MethodSummary], Interval | None]:
    """How a cell's number is had from a summary, in the printed unit."""
    if table in (3, 16):
        return lambda s: s.gap
    if table == 17:
        return lambda s: Interval(1.0, 1.0, 1.0, len(s.seeds)) if s.is_reference else s.gap_ratio
    if table in (14, 15):
        wanted = next(key for key, words in QUANTITIES.items() if words == cell.quantity)
        return {
            "throughput_samples_per_s": _throughput,
            "runtime_minutes": lambda s: _times(s.seconds, 1 / 60),
            "trainable_parameters": lambda s: None if s.trainable is None else _exact(float(s.trainable)),
            "peak_gpu_memory_gb": lambda s: None if s.peak_bytes is None else _exact(s.peak_bytes / 1e9),
        }[wanted]
    return lambda s: _times(s.test_metric, pair.data.factor)


def _throughput(summary: MethodSummary) -> Interval | None:
    if summary.cost is None:
        return None
    step, speed = summary.cost.step, summary.cost.samples_per_second
    return Interval(speed, speed * step.median / step.high, speed * step.median / step.low, step.steps)


def _times(interval: Interval | None, factor: float) -> Interval | None:
    if interval is None:
        return None
    low = None if interval.low is None else interval.low * factor
    high = None if interval.high is None else interval.high * factor
    return Interval(interval.mean * factor, low, high, interval.n)


def _exact(value: float) -> Interval:
    return Interval(value, None, None, 1)


def _place(cell: Cell) -> tuple[str, str]:
    return cell.model, cell.dataset


# --- texts ----------------------------------------------------------------------------------------


def _row(line: Line, of_cost: bool, ratios: bool) -> list[Entry]:
    cell, ours = line.cell, line.ours
    show = _like(cell.text)
    mark = _MARK if line.ran is not None and not line.ran.whole else ""
    text = ""
    if ours is not None:
        sign = "−" if ours.mean < 0 else ""
        text = sign + show(math.fabs(ours.mean)) + plus_minus(ours.half_width, show, line.widest) + mark
    over = [
        Entry("" if line.ratio is None else f"{line.ratio:.3f}", line.ratio),
        Entry("" if cell.ratio is None else f"{cell.ratio:.3f}", cell.ratio),
    ]
    within = {None: "", True: "yes", False: "no"}[line.within]
    return [
        name(cell.model),
        name(cell.dataset),
        name(cell.method),
        *([name(cell.quantity)] if of_cost else []),
        Entry(text, None if ours is None else ours.mean),
        Entry("", None if ours is None else ours.low),
        Entry("", None if ours is None else ours.high),
        Entry(cell.text, cell.value),
        Entry("" if line.difference is None else _signed(line.difference, show), line.difference),
        *(over if ratios else []),
        Entry("" if ours is None else str(ours.n), None if ours is None else float(ours.n)),
        name(within),
        name("" if line.ran is None else "yes" if line.ran.whole else "no"),
        name("" if line.ran is None else line.ran.folder.name),
    ]


def _like(printed: str) -> Callable[[float], str]:
    """Numbers with as many digits as the printed one has."""
    if "e" in printed.lower():
        digits = len(printed.lower().split("e")[0].replace(".", "").lstrip("-"))
        return lambda value: f"{value:.{digits}g}"
    if "." not in printed:
        return lambda value: f"{value:,.0f}"
    places = len(printed.split(".")[1])
    return lambda value: f"{value:.{places}f}"


def _signed(value: float, show: Callable[[float], str]) -> str:
    return ("+" if value > 0 else "−" if value < 0 else "") + show(math.fabs(value))


def _legend(table: int, lines: Sequence[Line], ran: int, printed: int) -> list[str]:
    said = [
        "Ours: mean over seeds with its 95 % t interval; diff.: ours less the print; within: whether the printed mean, "
        "itself of three seeds and without an interval, lies in it.",
        f"{ran} of {printed} printed models on data sets have runs here.",
    ]
    if table in (3, 16, 17):
        said.append(
            "Gap: mean test loss less mean train loss in nats, whole splits, eval mode, the weights of the epoch kept. "
            "A method that learned nothing has a small gap: read it beside its score."
        )
    if table == 17:
        said.append("Ratios of mean gaps over common seeds, with Fieller's interval.")
    if table in (14, 15):
        said += [
            "Throughput: of the median step of the cost probe; peak memory: the probe's, model included; runtime: "
            "whole runs with evaluation. The printed ones are of an H100 PCIe: compare ratios.",
            "s-cLA and s-r-c3LA compute cLA and r-c3LA by gathering columns, as ours always do.",
        ]
    if any(line.ours is not None and line.ours.n == 2 for line in lines) and table not in (14, 15):
        said.append(TWO_SEEDS)
    departures = dict.fromkeys(
        f"{line.ran.pair.key}: {'; '.join(line.ran.known.changes)}" for line in lines if line.ran and not line.ran.whole
    )
    if departures:
        said.append(f"{_MARK} Not as the paper ran it, so not its number: {'. '.join(departures)}.")
    return said
