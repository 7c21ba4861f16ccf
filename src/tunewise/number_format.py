"""Numbers as people read them; one way for tables, figures and console alike."""

from __future__ import annotations

import math
from collections.abc import Callable

MISSING = "–"
TWO_SEEDS = (
    "Two seeds say little: their 95 % interval reaches 12.7 standard errors to each side; that of three seeds 4.3, of "
    "five 2.8."
)
"""What belongs beside means of two."""


def is_share(metric: str, higher_is_better: bool) -> bool:
    """Whether a metric is shown in per cent. What a user's function (`FILE.py:NAME`) or a task of lm-evaluation-harness
    (`lm_eval:TASK/NAME`) returns may have any scale."""
    return higher_is_better and ":" not in metric


def metric_name(metric: str) -> str:
    """`macro f1` for `macro_f1`; what names a file or a task stays as it is."""
    return metric if ":" in metric else metric.replace("_", " ")


def percent(share: float) -> str:
    """A metric in [0, 1] as `91.14`, without the sign: the column says it."""
    return _signless_zero(f"{100 * share:.2f}")


def points(difference: float) -> str:
    """A difference of two metrics in percentage points: `+0.81`, `−1.18`."""
    return _signless_zero(f"{100 * difference:+.2f}").replace("-", "−")


def score(value: float, share: bool) -> str:
    """A test metric: a share as per cent, anything else (a perplexity) with four digits, `12.34`."""
    return percent(value) if share else _signless_zero(f"{value:#.4g}".rstrip("."))


def score_difference(value: float, share: bool) -> str:
    """A difference of two of them: in points, or `+0.812`, `−1.180`."""
    return points(value) if share else _signless_zero(f"{value:+#.3g}".rstrip(".")).replace("-", "−")


def plus_minus(half: float | None, shown: Callable[[float], str], widest: float | None = None) -> str:
    """` ± 0.81` after a mean; ` ± >50.00` for an interval wider than the scale, of half-length `widest`."""
    if half is None:
        return ""
    return f" ± {shown(half)}" if widest is None or half <= widest else f" ± >{shown(widest)}"


def widest(metric: str, share: bool) -> float | None:
    """Half of the length of a metric's scale: 0 to 1, or -1 to 1; None where it has no end."""
    if not share:
        return None
    return 1.0 if metric in ("matthews", "pearson", "spearman") else 0.5


def difference_end(value: float, share: bool, widest: float | None) -> str:
    """One end of a difference's interval: `+0.81`; `< −100.00` where no two scores can differ so much."""
    if widest is not None and abs(value) > 2 * widest:
        return f"{'<' if value < 0 else '>'} {score_difference(math.copysign(2 * widest, value), share)}"
    return score_difference(value, share)


def nats(loss: float) -> str:
    """A loss or a gap: `0.1233`."""
    return _signless_zero(f"{loss:.4f}").replace("-", "−")


def count(value: int | None) -> str:
    """`76,294`."""
    return MISSING if value is None else f"{value:,}"


def seconds(value: float | None) -> str:
    """`181 ms`, `2.4 s`, `12 min`: three digits at most."""
    if value is None:
        return MISSING
    if value < 1:
        return f"{_three(value * 1e3)} ms"
    return f"{_three(value)} s" if value < 120 else f"{_three(value / 60)} min"


def memory(value: int | None) -> str:
    """Bytes in powers of 1024: `96.2 MiB`."""
    if value is None:
        return MISSING
    size = float(value)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{_three(size)} {unit}" if unit != "B" else f"{value} B"
        size /= 1024
    return f"{_three(size)} GiB"


def ratio(value: float | None) -> str:
    """`1.42 ×`."""
    return MISSING if value is None else f"{value:.2f} ×"


def short_count(value: int | None) -> str:
    """`76.3 k`, `22.7 M`: for a narrow console."""
    if value is None or value < 10_000:
        return count(value)
    if value < 999_500:
        return f"{_three(value / 1e3)} k"
    return f"{_three(value / 1e6)} M" if value < 999_500_000 else f"{_three(value / 1e9)} B"


def rate(value: float) -> str:
    """A learning rate: `0.001`, `5e-05`."""
    return f"{value:g}"


def _three(value: float) -> str:
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 3)}f}"


def _signless_zero(text: str) -> str:
    return text.lstrip("+-") if not text.strip("+-0.") else text
