"""Sizes and times: parsed from flags, and formatted for messages."""

from __future__ import annotations

import math
import re

from tunewise.errors import SpecError

_NUMBER = r"([0-9]*[.,]?[0-9]+)"
_AMOUNT = re.compile(rf"{_NUMBER}\s*([a-z]*)\s*")

# SI prefixes are powers of 1000, those with an i of 1024; a bare letter means 1024, as memory is sold.
_BYTES = {"": 1, "b": 1, "byte": 1, "bytes": 1}
for _power, _prefix in enumerate("kmgt", start=1):
    _BYTES |= {_prefix: 1024**_power, f"{_prefix}ib": 1024**_power, f"{_prefix}b": 1000**_power}
_SECONDS = {"s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "day": 86400}


def parse_memory(text: str) -> int:
    """Bytes of `6GB` (10^9), `6GiB` (2^30), `600 MB`, `6g` (2^30), `1000000`. Raises `SpecError`."""
    # pydantic's ByteSize reads "6,5GB" as 6 bytes.
    match = _AMOUNT.fullmatch(text.strip().lower())
    if match is None or match[2] not in _BYTES:
        raise SpecError(f"memory {text!r}: a number and a unit are expected, like 6GB, 6GiB or 600MB")
    size = round(_number(match[1]) * _BYTES[match[2]])
    if size < 1:
        raise SpecError(f"memory {text!r} must be above 0")
    return size


def parse_seconds(text: str) -> float:
    """Seconds of `10min`, `2h`, `90s`, `1h30min`, `1.5 hours`, `90`. Raises `SpecError`."""
    parts = [(number, unit.removesuffix("s") or "s") for number, unit in _AMOUNT.findall(text.strip().lower())]
    is_complete = not _AMOUNT.sub("", text.strip().lower())
    if not parts or not is_complete or any(unit not in _SECONDS for _, unit in parts):
        raise SpecError(f"time {text!r}: a number and a unit are expected, like 90s, 10min, 2h or 1h30min")
    total = math.fsum(_number(number) * _SECONDS[unit] for number, unit in parts)
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


def format_seconds(value: float) -> str:
    """`42 s`, `3.5 min`, `2.1 h`."""
    if value < 90:
        return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"
    return f"{value / 60:.1f} min" if value < 5400 else f"{value / 3600:.1f} h"


def _number(text: str) -> float:
    return float(text.replace(",", "."))
