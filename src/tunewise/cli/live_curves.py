"""Learning curves in the terminal while they grow: a line a method, all on one scale."""

from __future__ import annotations

from collections import defaultdict

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from tunewise.training.events import EpochDone, Event, RunStarted, StepDone

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 32


class LiveCurves:
    """A rich renderable that listens to a run's events. Training loss is averaged over the steps that fall into one
    place of the line, and over seeds; validation figures are the latest epoch's means over seeds."""

    def __init__(self, most_rows: int = 12) -> None:
        self.most_rows = most_rows
        # run -> its method and seed
        self.runs: dict[str, tuple[str, int]] = {}
        # method -> place along the run -> losses of all seeds there
        self.losses: dict[str, dict[int, list[float]]] = {}
        # method -> seed -> (validation loss, metric's name, its value)
        self.scores: dict[str, dict[int, tuple[float, str, float]]] = defaultdict(dict)

    def on(self, event: Event) -> None:
        """Take note of an event."""
        match event:
            case RunStarted():
                self.runs[event.run_id] = (event.label, event.seed)
                self.losses.setdefault(event.label, defaultdict(list))
            case StepDone() if event.run_id in self.runs:
                place = min(WIDTH - 1, (event.step - 1) * WIDTH // event.total_steps)
                self.losses[self.runs[event.run_id][0]][place].append(event.loss)
            case EpochDone() if event.run_id in self.runs:
                label, seed = self.runs[event.run_id]
                self.scores[label][seed] = (event.validation_loss, event.metric, event.value)

    def curve(self, label: str) -> list[float | None]:
        """Mean training loss at each of the line's places; None where there is no step yet."""
        found = self.losses[label]
        return [sum(found[i]) / len(found[i]) if found.get(i) else None for i in range(WIDTH)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self.losses:
            return
        curves = {label: self.curve(label) for label in self.losses}
        values = [v for curve in curves.values() for v in curve if v is not None]
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        metric = next((s[1] for seeds in self.scores.values() for s in seeds.values()), "metric").replace("_", " ")
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("method", no_wrap=True)
        table.add_column(f"training loss, {high:.2f} to {low:.2f}" if values else "training loss", no_wrap=True)
        for name in ("now", "val. loss", metric, "seeds"):
            table.add_column(name, justify="right", no_wrap=True)
        shown = list(curves)[-self.most_rows :]
        latest = next(reversed(self.runs.values()))[0]  # which may have gone on with a method from further above
        if latest not in shown:
            shown[0] = latest
        for label in shown:
            table.add_row(label, sparkline(curves[label], low, high), *self._figures(label, curves[label]))
        yield table

    def _figures(self, label: str, curve: list[float | None]) -> list[str]:
        now = next((f"{v:.3f}" for v in reversed(curve) if v is not None), "")
        scores = list(self.scores[label].values())
        if not scores:
            return [now, "", "", ""]
        loss = sum(s[0] for s in scores) / len(scores)
        value = sum(s[2] for s in scores) / len(scores)
        return [now, f"{loss:.3f}", f"{value:.3f}", str(len(scores))]


def sparkline(values: list[float | None], low: float, high: float) -> str:
    """One block a value, full at `high`; holes are filled with the value before them, what is to come is blank."""
    last = max((i for i, v in enumerate(values) if v is not None), default=-1)
    text, known = "", None
    for value in values[: last + 1]:
        known = value if value is not None else known
        share = 0.0 if known is None or high <= low else (known - low) / (high - low)
        text += " " if known is None else BLOCKS[min(len(BLOCKS) - 1, max(0, int(share * len(BLOCKS))))]
    return text
