"""Alignment: does dW grow in the singular spaces of the very first full gradient (arXiv 2502.01235, Theorems 3.1, 3.2)?

The principal angles between the top singular spaces of dW and those of G, the one-step full gradient at W0 that
LoRA-One starts from: left (outputs) and right (inputs), layer by layer. 90 degrees: nothing in common.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from torch import Tensor, nn

from tunewise.errors import DataError, MeasureError
from tunewise.measures._linalg.angles import principal_angles, random_angles
from tunewise.measures._tensor_cache import read_tensors, save_tensors
from tunewise.measures.base import MeasureResult, MeasureSettings, Values
from tunewise.measures.finished import Check, FinishedRun
from tunewise.measures.updates.folder import updates_of_run
from tunewise.measures.updates.layer import LayerUpdate, Updates
from tunewise.methods.attachment import attachment
from tunewise.methods.gradient_start import Slice, gradient_svd
from tunewise.models.fused import Part
from tunewise.models.layers import find_targets, shape_of
from tunewise.spec import content_hash
from tunewise.spec.run import PROTOCOL
from tunewise.training.build import one_step_batches

SAMPLES = 128
"""Training examples of which the gradient is taken: the same that LoRA-One starts from."""
NEGLIGIBLE = 1e-6
"""A singular value of dW below this part of its largest is rounding, and its direction says nothing."""
Spaces = dict[Slice, tuple[Tensor, Tensor]]
"""Slice of a layer -> orthonormal (left (rows, r), right (m, r)) of the gradient's top r."""


class ChanceAngles(Values):
    """Degrees between random spaces: the mean angle with the interval of 95 % of draws, and the largest angle."""

    mean: float
    low: float
    high: float
    largest: float


class SliceFacts(Values):
    """An adapted range of output rows of a layer."""

    name: str
    rows: tuple[int, int]
    features: int
    chance_left: ChanceAngles
    chance_right: ChanceAngles


class Angles(Values):
    """Degrees, one number for each slice; None where dW is still zero."""

    left_mean: list[float | None]
    left_largest: list[float | None]
    right_mean: list[float | None]
    right_largest: list[float | None]


class AlignmentResult(MeasureResult):
    rank: int
    """Dimensions compared, at most."""
    samples: int
    """Examples of which the gradient is taken."""
    layers: list[SliceFacts]
    selected: Angles
    """Of the selected epoch's weights."""


def compute(run: FinishedRun, settings: MeasureSettings, check: Check) -> AlignmentResult:
    """Full fine-tuning is measured on the layers that an adapter would be on."""
    base = run.base
    slices = _slices(run.model, base, run.spec.method.targets)
    rank = min(run.spec.method.rank, *(min(part.rows, _features(base, name)) for name, part in slices))
    spaces = gradient_spaces(run, slices, rank)
    check()
    return AlignmentResult(
        rank=rank,
        samples=min(SAMPLES, len(run.task.train)),
        layers=[_facts(one, _features(base, one[0]), rank) for one in slices],
        selected=Angles.model_validate(_angles(updates_of_run(run), slices, spaces, rank)),
    )


def gradient_spaces(run: FinishedRun, slices: list[Slice], rank: int) -> Spaces:
    """Top-r singular spaces of the one-step gradient at W0, cached: methods of one seed and rank share them."""
    spec = run.spec
    key = content_hash(
        [
            spec.model.model_dump(mode="json", exclude={"path"} if spec.model.digest else set()),
            spec.data.model_dump(mode="json", exclude={"path", "validation", "test"} if spec.data.digest else set()),
            [spec.task, spec.seed, rank, spec.training.batch_size, spec.training.max_length, SAMPLES, PROTOCOL],
            slices,
        ]
    )
    file = run.cache / "one-step-gradient" / f"{key}.safetensors"
    cached = _read(file, slices)
    if cached is not None:
        return cached
    layers = {name: run.base.get_submodule(name) for name, _ in slices}
    try:
        svd = gradient_svd(
            run.base, layers, one_step_batches(spec, run.task, SAMPLES), rank=rank, seed=spec.seed, slices=slices
        )
    except DataError as error:
        raise MeasureError(str(error)) from None
    spaces = {one: (u, v) for one, (u, _, v) in svd.items()}
    save_tensors(file, {f"{side}.{_name(one)}": t for one, uv in spaces.items() for side, t in zip("uv", uv)})
    return spaces


def _read(file: Path, slices: list[Slice]) -> Spaces | None:
    tensors = read_tensors(file) or {}
    try:
        return {one: (tensors[f"u.{_name(one)}"], tensors[f"v.{_name(one)}"]) for one in slices}
    except KeyError:
        return None


def _name(one: Slice) -> str:
    name, part = one
    return f"{name}[{part.start}:{part.stop}]"


def _slices(model: nn.Module, base: nn.Module, targets: str | list[str]) -> list[Slice]:
    """Adapted slices; for full fine-tuning, those that an adapter would be on."""
    done = attachment(model)
    if done.method.trained == "head":
        raise MeasureError("trains the task head alone, so there is no dW")
    found = find_targets(base, targets) if done.method.trained == "all" else done.targets
    return [(target.name, part) for target in found for part in target.parts]


def _angles(updates: Updates, slices: list[Slice], spaces: Spaces, rank: int) -> dict[str, list[float | None]]:
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
    """Left and right singular vectors of the slice of dW: `rank` of them, or as many as have a value above zero."""
    part = one[1]
    if part != Part(0, update.shape[0]):
        update = _rows(update, part)
    u, values, vh = update.top_singular_vectors(rank)
    kept = int((values > NEGLIGIBLE * values[0]).sum()) if len(values) and float(values[0]) > 0 else 0
    return (u[:, :kept], vh[:kept].T) if kept else None


def _rows(update: LayerUpdate, part: Part) -> LayerUpdate:
    """The update of some output rows."""
    return LayerUpdate(
        update.name,
        (part.rows, update.shape[1]),
        lambda: update.base[part.indices],
        None if update.left is None else update.left[part.indices],
        update.right,
        None if update.left is not None else lambda: update.delta()[part.indices],
    )


def _facts(one: Slice, features: int, rank: int) -> SliceFacts:
    name, part = one
    left, right = (ChanceAngles.model_validate(asdict(random_angles(n, rank, rank))) for n in (part.rows, features))
    return SliceFacts(name=name, rows=(part.start, part.stop), features=features, chance_left=left, chance_right=right)


def _features(base: nn.Module, name: str) -> int:
    return shape_of(base.get_submodule(name))[1]
