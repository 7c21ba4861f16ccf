"""Colours, markers and dashes of the methods: one of each per method, the same in every figure.

Okabe-Ito's eight hues, shifted until (1) each has contrast of at least 3:1 to its background and (2) the
closest pair stays as far apart as can be under deuteranopia, protanopia and tritanopia. No palette does
this on white and on near-black at once, so each colour is a pair; figures are built with the light one, and
the page exchanges it (`DARK`) where the reader prefers dark. Marker and dash say the same without colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LIGHT_PAGE = "#ffffff"
DARK_PAGE = "#14181d"

_HUES: list[tuple[str, str]] = [  # (on the light page, on the dark page)
    ("#1850a3", "#8a85f7"),
    ("#e4320b", "#f0661c"),
    ("#23837e", "#10b17b"),
    ("#b468bb", "#ff84ba"),
    ("#d07c00", "#cbb71b"),
    ("#0d7afe", "#86c0ff"),
    ("#4a2a3e", "#f4f4ee"),
    ("#647c25", "#c9f016"),
]

# Ink of axes, text and grids.
INK = "#1c2126"
MUTED = "#5a636d"
GRID = "#e3e7eb"
ZERO = "#9aa4ae"
# The confusion matrix: none .. all of a class.
SCALE_LOW = "#f4f7fa"
SCALE_MIDDLE = "#7fa6d6"
SCALE_HIGH = "#123f82"

# What each colour of a figure becomes on a dark page.
DARK: dict[str, str] = {
    **dict(_HUES),
    INK: "#e6e9ec",
    MUTED: "#a3adb7",
    GRID: "#2b323a",
    ZERO: "#66717c",
    SCALE_LOW: "#1b2129",
    SCALE_MIDDLE: "#3f6aa5",
    SCALE_HIGH: "#a9ccff",
    LIGHT_PAGE: DARK_PAGE,
}

# plotly's marker names, and the same shapes as SVG paths in a box of -6 .. 6 for the key of the page.
_SHAPES: list[tuple[str, str]] = [
    ("circle", "M5 0A5 5 0 1 1 -5 0A5 5 0 1 1 5 0Z"),
    ("square", "M-4.5 -4.5H4.5V4.5H-4.5Z"),
    ("diamond", "M0 -6L6 0L0 6L-6 0Z"),
    ("triangle-up", "M0 -6L5.5 4H-5.5Z"),
    ("cross", "M-2 -6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z"),
    ("triangle-down", "M0 6L5.5 -4H-5.5Z"),
    ("x", "M-5.5 -3L-3 -5.5L0 -2.5L3 -5.5L5.5 -3L2.5 0L5.5 3L3 5.5L0 2.5L-3 5.5L-5.5 3L-2.5 0Z"),
    ("hexagon", "M0 -6L5.2 -3V3L0 6L-5.2 3V-3Z"),
    ("star", "M0 -6L1.6 -1.9H6L2.5 1L3.8 5.5L0 2.8L-3.8 5.5L-2.5 1L-6 -1.9H-1.6Z"),
]
_DASHES: list[tuple[str, str]] = [
    ("solid", ""),
    ("dash", "5 3"),
    ("dot", "1.5 2.5"),
    ("dashdot", "6 2 1.5 2"),
]


@dataclass(frozen=True)
class Mark:
    """How one method is drawn."""

    light: str
    dark: str
    symbol: str
    symbol_path: str
    dash: str
    dash_pattern: str


def marks(methods: Sequence[str]) -> dict[str, Mark]:
    """Method label -> mark, by place; after eight methods colours repeat with another dash."""
    given: dict[str, Mark] = {}
    for place, method in enumerate(dict.fromkeys(methods)):
        light, dark = _HUES[place % len(_HUES)]
        symbol, path = _SHAPES[place % len(_SHAPES)]
        dash, pattern = _DASHES[(place // len(_HUES)) % len(_DASHES)]
        given[method] = Mark(light, dark, symbol, path, dash, pattern)
    return given
