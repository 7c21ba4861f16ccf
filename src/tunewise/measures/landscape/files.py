"""Loss landscapes as files for papers and slides: SVG and PNG by matplotlib (`pip install tunewise[landscape]`).

landscape/random.svg, pca.svg              every method's plane, side by side, on one scale
landscape/random-surfaces.svg, ...         the same in three dimensions
landscape/basins.svg                       the edge of every method's basin, over each other
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tunewise.measures.landscape.figures import FLOOR, Data, DrawnSurface, Scale, levels_of, surfaces_of
from tunewise.pages import palette
from tunewise.pages.palette import Mark
from tunewise.store.files import write_atomically

_LEVELS = 16
_PATH = "#e4320b"
_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
_MOST_ACROSS = 4


def write_landscapes(folder: Path, data: Data) -> list[Path]:
    """Write the figures; none where matplotlib is not installed. The same data give the same SVG bytes."""
    try:
        import matplotlib
    except ImportError:
        return []
    surfaces = surfaces_of(data)
    scale = Scale.of([surface for of_kind in surfaces.values() for surface in of_kind.values()])
    written: list[Path] = []
    style: Any = {"svg.hashsalt": "tunewise", "font.size": 9, "axes.linewidth": 0.6, "svg.fonttype": "none"}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of lines that no contour crosses
        for kind, of_kind in surfaces.items():
            if of_kind:
                written += _side_by_side(folder / kind, of_kind, scale, _contour)
                written += _side_by_side(folder / f"{kind}-surfaces", of_kind, scale, _relief, projection="3d")
        if len(surfaces["random"]) > 1:
            written += _basins(folder / "basins", surfaces["random"], levels_of(data), data.marks)
    return written


def _side_by_side(
    stem: Path,
    surfaces: Mapping[str, DrawnSurface],
    scale: Scale,
    draw: Callable[[Any, DrawnSurface, Scale], Any],
    projection: str | None = None,
) -> list[Path]:
    across = min(len(surfaces), _MOST_ACROSS)
    down = math.ceil(len(surfaces) / across)
    figure = _figure(3.1 * across + 0.6, 2.9 * down)
    drawn = None
    axes = []
    for place, (method, surface) in enumerate(surfaces.items()):
        axis = figure.add_subplot(down, across, place + 1, projection=projection)
        drawn = draw(axis, surface, scale)
        axis.set_title(method, fontsize=10)
        axes.append(axis)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, label="loss, nats")
    bar.set_ticks([math.log10(t) for t in scale.ticks], labels=[f"{t:.3g}" for t in scale.ticks])
    return _save(figure, stem)


def _contour(axis: Any, surface: DrawnSurface, scale: Scale) -> Any:
    levels = np.linspace(math.log10(scale.low), math.log10(scale.high), _LEVELS)
    z = _logarithms(surface)
    drawn = axis.contourf(surface.x, surface.y, z, levels, cmap=_colours(), extend="both")
    axis.contour(surface.x, surface.y, z, levels, colors=palette.MUTED, linewidths=0.3)
    if surface.path:
        xs, ys = zip(*surface.path, strict=True)
        axis.plot(xs, ys, "-", color="white", linewidth=2.6)
        axis.plot(xs, ys, "o-", color=_PATH, linewidth=1.2, markersize=2.5)
    axis.plot([0], [0], "+", color="white", markersize=9, markeredgewidth=2.6)
    axis.plot([0], [0], "+", color=palette.INK, markersize=8, markeredgewidth=1.2)
    axis.set_xlabel(surface.axes[0])
    axis.set_ylabel(surface.axes[1])
    axis.set_xlim(surface.x[0], surface.x[-1])
    axis.set_ylim(surface.y[0], surface.y[-1])
    return drawn


def _relief(axis: Any, surface: DrawnSurface, scale: Scale) -> Any:
    xs, ys = np.meshgrid(surface.x, surface.y)
    z = _logarithms(surface)
    low, high = math.log10(scale.low), math.log10(scale.high)
    drawn = axis.plot_surface(xs, ys, z, cmap=_colours(), vmin=low, vmax=high, linewidth=0.1, edgecolor=palette.MUTED)
    drawn.set_rasterized(True)  # thousands of facets
    axis.set_zlim(low, high)
    axis.set_zticks([math.log10(t) for t in scale.ticks], labels=[f"{t:.3g}" for t in scale.ticks], fontsize=7)
    axis.tick_params(labelsize=7)
    axis.view_init(elev=32, azim=-55)
    return drawn


def _basins(
    stem: Path, surfaces: Mapping[str, DrawnSurface], levels: Mapping[str, float], marks: Mapping[str, Mark]
) -> list[Path]:
    figure = _figure(4.4, 3.8)
    axis = figure.add_subplot()
    for method, surface in surfaces.items():
        mark = marks[method]
        style = _DASHES[mark.dash]
        axis.contour(
            surface.x,
            surface.y,
            _logarithms(surface),
            [math.log10(levels[method])],
            colors=mark.light,
            linestyles=style,
        )
        axis.plot([], [], style, color=mark.light, label=method)
    first = next(iter(surfaces.values()))
    axis.set_xlabel(first.axes[0])
    axis.set_ylabel(first.axes[1])
    axis.set_title("log(classes) / 4 above the minimum", fontsize=10)
    axis.legend(fontsize=8, frameon=False)
    return _save(figure, stem)


def _figure(width: float, height: float) -> Any:
    """Without pyplot: no window, no state that outlives the call."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _colours() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("tunewise", [palette.SCALE_HIGH, palette.SCALE_MIDDLE, palette.SCALE_LOW])


def _logarithms(surface: DrawnSurface) -> Any:
    values = np.array([[np.nan if v is None else v for v in row] for row in surface.loss], dtype=np.float64)
    return np.ma.masked_invalid(np.log10(np.maximum(values, FLOOR)))


def _save(figure: Any, stem: Path) -> list[Path]:
    stem.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": "tunewise"})
    vector, pixels = stem.with_suffix(".svg"), stem.with_suffix(".png")
    write_atomically(vector, text.getvalue())
    figure.savefig(pixels, dpi=160, metadata={"Software": "tunewise"})
    return [vector, pixels]
