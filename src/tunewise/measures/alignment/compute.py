"""Alignment: does dW grow in the singular spaces of the very first full gradient (arXiv 2502.01235, Theorems 3.1, 3.2)?

The principal angles between the top singular spaces of dW and those of G, the one-step full gradient at W0 that
LoRA-One starts from: left (outputs) and right (inputs), layer by layer, along the run. 90 degrees: nothing in common.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tunewise.errors import DataError, MeasureError
from tunewise.measures._linalg.angles import by_chance, principal_angles
from tunewise.measures._tensor_cache import keep_tensors, read_tensors
from tunewise.measures.finished import FinishedRun
from tunewise.measures.updates.layer import LayerUpdate
from tunewise.measures.updates.live import live_updates
from tunewise.methods.adapter_files import restore
from tunewise.methods.attachment import attachment
from tunewise.methods.one_step import Slice, gradient_svd
from tunewise.models.layers import find_targets, shape_of
from tunewise.spec import content_hash
from tunewise.training.build import one_step_batches

SAMPLES = 128
"""Training examples of which the gradient is taken: the same that LoRA-One starts from."""
NEGLIGIBLE = 1e-6
"""A singular value of dW below this part of its largest is rounding, and its direction says nothing."""
Spaces = dict[Slice, tuple[Tensor, Tensor]]
"""Slice of a layer -> orthonormal (left (rows, r), right (m, r)) of the gradient's top r."""


def alignment(run: FinishedRun, check: Callable[[], None]) -> dict[str, Any]:
    """Values:

    - `rank`: dimensions compared, at most; `samples`: examples of which the gradient is taken;
    - `layers`: name and shape of each slice, and `chance`: left and right mean and largest angle of random spaces;
    - `points`: `step`, and a number per layer for `left_mean`, `left_largest`, `right_mean`, `right_largest`, in
      degrees; None where dW is still zero;
    - `selected`: the same for the selected epoch's weights.

    Full fine-tuning is looked at in the layers that an adapter would be on. Without a trajectory `points` is empty.
    Raises `MeasureError` for a method without dW.
    """
    model, base = run.model, run.base
    slices = _slices(model, base, run.spec.method.targets)
    rank = min(run.spec.method.rank, *(min(stop - start, _features(base, name)) for name, start, stop in slices))
    spaces = gradient_spaces(run, slices, rank)
    check()
    selected = _angles(model, base, slices, spaces, rank)
    points = []
    try:
        for snapshot in run.snapshots:
            check()
            snapshot.restore(model)
            points.append({"step": snapshot.step, **_angles(model, base, slices, spaces, rank)})
    finally:
        restore(model, run.adapter)
    return {
        "rank": rank,
        "samples": min(SAMPLES, len(run.task.train)),
        "layers": [_layer(one, _features(base, one[0]), rank) for one in slices],
        "selected": selected,
        "points": points,
        "waits_for_trajectory": not points,
    }


def gradient_spaces(run: FinishedRun, slices: list[Slice], rank: int) -> Spaces:
    """The top-r left and right singular spaces of the one-step full gradient at W0 and the run's untrained head. They
    are the same for every method of one seed, rank and set of layers, so they are kept in the run's cache."""
    spec = run.spec
    key = content_hash(
        [
            spec.model.model_dump(mode="json", exclude={"path"} if spec.model.digest else set()),
            spec.data.model_dump(mode="json", exclude={"path", "validation", "test"} if spec.data.digest else set()),
            [spec.task, spec.seed, rank, spec.training.batch_size, spec.training.max_length, SAMPLES],
            slices,
        ]
    )
    file = run.cache / "one-step-gradient" / f"{key}.safetensors"
    known = _read(file, slices)
    if known is not None:
        return known
    layers = {name: run.base.get_submodule(name) for name, _, _ in slices}
    try:
        found = gradient_svd(
            run.base, layers, one_step_batches(spec, run.task, SAMPLES), rank=rank, seed=spec.seed, slices=slices
        )
    except DataError as error:
        raise MeasureError(str(error)) from None
    spaces = {one: (u, v) for one, (u, _, v) in found.items()}
    keep_tensors(file, {f"{side}.{_name(one)}": t for one, uv in spaces.items() for side, t in zip("uv", uv)})
    return spaces


def _read(file: Path, slices: list[Slice]) -> Spaces | None:
    tensors = read_tensors(file) or {}
    try:
        return {one: (tensors[f"u.{_name(one)}"], tensors[f"v.{_name(one)}"]) for one in slices}
    except KeyError:
        return None


def _name(one: Slice) -> str:
    return f"{one[0]}[{one[1]}:{one[2]}]"


def _slices(model: nn.Module, base: nn.Module, targets: str | list[str]) -> list[Slice]:
    """The adapted ones; of full fine-tuning, those that an adapter would be on."""
    done = attachment(model)
    if done.method.trained == "head":
        raise MeasureError("trains the task head alone, so there is no dW")
    found = find_targets(base, targets) if done.method.trained == "all" else done.targets
    return [(target.name, start, stop) for target in found for start, stop in target.parts]


def _angles(
    model: nn.Module, base: nn.Module, slices: list[Slice], spaces: Spaces, rank: int
) -> dict[str, list[float | None]]:
    updates = live_updates(model, base)
    found: dict[str, list[float | None]] = {
        f"{side}_{what}": [] for side in ("left", "right") for what in ("mean", "largest")
    }
    for one in slices:
        tops = _top_spaces(updates[one[0]], one, rank)
        for side, ours, theirs in zip(("left", "right"), tops or (None, None), spaces[one]):
            angles = None if ours is None else principal_angles(ours.cpu().numpy(), theirs.cpu().numpy())
            found[f"{side}_mean"].append(None if angles is None else float(angles.mean()))
            found[f"{side}_largest"].append(None if angles is None else float(angles.max()))
    return found


def _top_spaces(update: LayerUpdate, one: Slice, rank: int) -> tuple[Tensor, Tensor] | None:
    """Left and right singular vectors of dW's slice, of its `rank` largest values or of as many as are not zero."""
    _, start, stop = one
    if (start, stop) != (0, update.shape[0]):
        update = _rows(update, start, stop)
    u, values, vh = update.top_singular_vectors(rank)
    kept = int((values > NEGLIGIBLE * values[0]).sum()) if len(values) and float(values[0]) > 0 else 0
    return (u[:, :kept], vh[:kept].T) if kept else None


def _rows(update: LayerUpdate, start: int, stop: int) -> LayerUpdate:
    """A run of output rows of an update as one of its own."""
    return LayerUpdate(
        update.name,
        (stop - start, update.shape[1]),
        lambda: update.base[start:stop],
        None if update.left is None else update.left[start:stop],
        update.right,
        None if update.left is not None else lambda: update.delta()[start:stop],
    )


def _layer(one: Slice, features: int, rank: int) -> dict[str, Any]:
    name, start, stop = one
    chance = {}
    for side, n in (("left", stop - start), ("right", features)):
        found = by_chance(n, rank, rank)
        chance[side] = {"mean": found.mean, "low": found.low, "high": found.high, "largest": found.largest}
    return {"name": name, "rows": [start, stop], "features": features, "chance": chance}


def _features(base: nn.Module, name: str) -> int:
    return shape_of(base.get_submodule(name))[1]
