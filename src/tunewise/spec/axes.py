"""The axes of a sweep: the value of each run on each axis, and the axes on which runs differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tunewise.catalog import get_method
from tunewise.spec.parts import DataSpec, MethodSpec, TrainingSpec
from tunewise.spec.run import RunSpec

Value = str | int | float | bool | None


def _of_method(key: str) -> Callable[[RunSpec], Value]:
    return lambda run: _plain(getattr(run.method, key)) if get_method(run.method.name).adapts else None


def _rank(run: RunSpec) -> Value:
    return run.method.rank if get_method(run.method.name).takes_rank else None


def _alpha(run: RunSpec) -> Value:
    row = get_method(run.method.name)
    return None if not row.takes_rank or row.scaling == "one" else run.method.alpha or 2.0 * run.method.rank


def _ratio(run: RunSpec) -> Value:
    alpha = _alpha(run)
    return alpha / run.method.rank if isinstance(alpha, float) else None


def _links(run: RunSpec) -> Value:
    chain = get_method(run.method.name).chain
    return None if chain is None else run.links or chain.links


def _plain(value: Value | list[str]) -> Value:
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or path


_OWN: dict[str, Callable[[RunSpec], Value]] = {
    "model": lambda run: _last(run.model.path),
    "data": lambda run: _last(run.data.path),
    "method": lambda run: run.method.name,
    "rank": _rank,
    "alpha": _alpha,
    "alpha / rank": _ratio,
    "targets": _of_method("targets"),
    "links": _links,
    "restart_every": lambda run: run.method.restart_every,
    "learning_rate": lambda run: run.learning_rate,
    "seed": lambda run: run.seed,
}
_LEFT_OUT = {"name", "title", "path", "digest", "notes", "learning_rate", "save_every"}


def _below(part: str, kind: type[MethodSpec | TrainingSpec | DataSpec]) -> dict[str, Callable[[RunSpec], Value]]:
    def reader(key: str) -> Callable[[RunSpec], Value]:
        return lambda run: _plain(getattr(getattr(run, part), key))

    return {key: reader(key) for key in kind.model_fields if key not in _LEFT_OUT and key not in _OWN}


AXES: dict[str, Callable[[RunSpec], Value]] = {
    **_below("data", DataSpec),
    **_below("training", TrainingSpec),
    **_below("method", MethodSpec),
    **_OWN,
}
"""By name: the value of a run on this axis; None where the axis means nothing to the run's method."""


def varying(runs: Sequence[RunSpec]) -> list[str]:
    """The axes on which these runs differ, the seed last; alpha as a multiple of the rank where that takes fewer
    values."""
    differing = []
    for name, value in AXES.items():
        values = {value(run) for run in runs}
        of_method = name in _OWN or name in MethodSpec.model_fields
        if len(values - {None} if of_method else values) > 1:
            differing.append(name)
    if "restart_every" in differing and "links" in differing:
        differing.remove("links")
    alphas, ratios = ({value(run) for run in runs} - {None} for value in (_alpha, _ratio))
    by_ratio = "rank" in differing and len(ratios) < len(alphas)
    differing = [name for name in differing if name != ("alpha" if by_ratio else "alpha / rank")]
    order = [*_OWN, *AXES]
    return sorted(differing, key=lambda name: (name == "seed", order.index(name)))


def name_of(run: RunSpec, axes: Sequence[str] = ()) -> str:
    """A run in a few words, with its value on each of these axes: 'lora r=8 batch_size=16, seed 0'."""
    words = [run.method.label]
    in_title = {"method", "seed", *(MethodSpec.model_fields if run.method.title else ())}
    for axis in axes:
        value = AXES[axis](run)
        if axis not in in_title and value is not None:
            words.append(f"{axis}={shown(value)}")
    return f"{' '.join(words)}, seed {run.seed}"


def shown(value: Value) -> str:
    """A value of an axis for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value)
