"""What the report says of forgetting: drift of the features, and the language-model loss where there is a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunewise.advise.statistics import Interval, mean_interval
from tunewise.pages import figures
from tunewise.pages.figures import GapBar
from tunewise.pages.section import Grid, Panel, Section
from tunewise.report.data import ReportData

_KINDS = {"masked": "masked-language loss", "causal": "next-token loss"}


def section(data: ReportData) -> Section | None:
    """Drift of every method with its seeds, and a table; None where nothing was measured."""
    found = data.values("forgetting")
    if not found:
        return None
    drift = _by_method([(r.spec.method.label, r.spec.seed, v["drift"]) for r, v in found])
    change = _by_method([(r.spec.method.label, r.spec.seed, v["loss"]["difference"]) for r, v in found if "loss" in v])
    first = found[0][1]
    panels = [
        _panel("drift", "Drift of the features", "||f1 - f0|| / ||f0||", drift, data),
    ]
    columns = ["method", "drift", "turn (1 - cos)", "similarity (CKA)"]
    if change:
        kind = _KINDS[first["loss"]["kind"]]
        panels.append(_panel("forgotten", f"Rise of the {kind}", "nats", change, data))
        columns += [f"{kind} before", "change"]
    rows = []
    for label in drift:
        own = [v for r, v in found if r.spec.method.label == label]
        row = [label, _plus_minus(drift[label]), *(_mean(own, key) for key in ("turn", "similarity"))]
        if change:
            row += [
                f"{first['loss']['before']:.3f}",
                _plus_minus(change[label], signed=True) if label in change else "",
            ]
        rows.append(row)
    words = [
        f"What fine-tuning did to the base model's own behaviour, on {first['source']}: how far the mean of the last "
        "hidden states moved, relative to its length. A method that solves the task and hardly moves the rest keeps "
        "more of the model for other uses.",
    ]
    if not change:
        words.append("The checkpoint has no language-model head, so there is no loss to set beside it.")
    return Section("forgetting", "Forgetting", words, panels, [Grid(columns, rows)], notes=data.missing("forgetting"))


def _by_method(values: Sequence[tuple[str, int, float]]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for label, seed, value in values:
        found.setdefault(label, {})[seed] = value
    return found


def _interval(by_seed: Mapping[int, float]) -> Interval:
    return mean_interval(list(by_seed.values()))


def _panel(key: str, title: str, unit: str, values: Mapping[str, Mapping[int, float]], data: ReportData) -> Panel:
    bars = []
    for label, by_seed in values.items():
        mean = _interval(by_seed)
        bars.append(GapBar(label, mean.mean, mean.low, mean.high, sorted(by_seed.items())))
    words = "; ".join(f"{bar.method} {bar.mean:.4f}" for bar in bars)
    caption = "Large mark: mean over seeds, with its 95 % interval. Small rings: the seeds."
    figure = figures.gap_per_method(bars, data.marks, axis=unit, unit=_short(unit))
    return Panel(f"{key}-figure", title, caption, f"{title}, {unit}: {words}.", figure)


def _plus_minus(by_seed: Mapping[int, float], *, signed: bool = False) -> str:
    found = _interval(by_seed)
    sign = "+" if signed else ""
    spread = "" if found.low is None else f" ± {found.mean - found.low:.3f}"
    return f"{found.mean:{sign}.3f}{spread}"


def _short(unit: str) -> str:
    return unit if unit == "nats" else ""


def _mean(values: Sequence[Mapping[str, float]], key: str) -> str:
    return f"{sum(v[key] for v in values) / len(values):.3f}"
