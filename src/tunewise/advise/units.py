"""Sizes and times: parsed from flags, and formatted for messages."""

from __future__ import annotations

import math
import re

from tunewise.errors import SpecError

_AMOUNT = re.compile(r"\s*([0-9]+(?:[.,][0-9]+)?|[.,][0-9]+)\s*([a-zA-Z]*)\s*")

# SI prefixes are powers of 1000, those with an i of 1024; a bare letter means what memory is sold in, 1024.
_BYTES = {
    **dict.fromkeys(("", "b", "byte", "bytes"), 1),
    **{prefix + "ib": 1024**i for i, prefix in enumerate("kmgt", start=1)},
    **{prefix: 1024**i for i, prefix in enumerate("kmgt", start=1)},
    **{prefix + "b": 1000**i for i, prefix in enumerate("kmgt", start=1)},
}
_SECONDS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
}


def parse_memory(text: str) -> int:
    """Bytes of `6GB` (10^9), `6GiB` (2^30), `600 MB`, `6g` (2^30), `1000000`. Raises `SpecError`."""
    match = _AMOUNT.fullmatch(text)
    unit = match[2].lower() if match else ""
    if match is None or unit not in _BYTES:
        raise SpecError(f"memory {text!r}: a number and a unit are expected, like 6GB, 6GiB or 600MB")
    size = round(_number(match[1]) * _BYTES[unit])
    if size < 1:
        raise SpecError(f"memory {text!r} must be above 0")
    return size


def parse_seconds(text: str) -> float:
    """Seconds of `10min`, `2h`, `90s`, `1h30min`, `1.5 hours`, `90`. Raises `SpecError`."""
    compact = text.strip().lower()
    if re.fullmatch(r"[0-9]+([.,][0-9]+)?", compact):
        total = _number(compact)
    else:
        pieces = re.findall(r"([0-9]+(?:[.,][0-9]+)?)\s*([a-z]+)\s*", compact)
        read = re.sub(r"([0-9]+(?:[.,][0-9]+)?)\s*([a-z]+)\s*", "", compact)
        if read or not pieces or any(unit not in _SECONDS for _, unit in pieces):
            raise SpecError(f"time {text!r}: a number and a unit are expected, like 90s, 10min, 2h or 1h30min")
        total = math.fsum(_number(number) * _SECONDS[unit] for number, unit in pieces)
    if not total > 0:
        raise SpecError(f"time {text!r} must be above 0")
    return total


def parse_tolerance(text: str, percent: bool) -> float:
    """Accepted loss of the test metric: points of a share, `0.5` or `0.5 %` as 0.005; else the plain number."""
    number = text.strip().removesuffix("%").removesuffix("points").removesuffix("point").strip()
    try:
        value = _number(number)
    except ValueError:
        raise SpecError(f"tolerance {text!r}: a number of points is expected, like 0.5") from None
    if not 0 <= value < math.inf or (percent and value >= 100):
        raise SpecError(f"tolerance {text!r} must be from 0 up to 100 points")
    return value / 100 if percent else value


def format_bytes(size: int) -> str:
    """`5.59 GiB`, `96.2 MiB`."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"


def format_seconds(value: float) -> str:
    """`42 s`, `3.5 min`, `2.1 h`."""
    if value < 90:
        return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"
    return f"{value / 60:.1f} min" if value < 5400 else f"{value / 3600:.1f} h"


def _number(text: str) -> float:
    return float(text.replace(",", "."))
