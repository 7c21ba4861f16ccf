"""How the loss rises around a minimum: along given directions, and in the worst one within a radius."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tunewise.measures._estimate import jackknife
from tunewise.measures._weight_space.batches import FixedBatches
from tunewise.measures._weight_space.directions import Direction, Weight
from tunewise.measures._weight_space.plane import Plane


def second_differences(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    directions: Sequence[tuple[Direction, float]],
    batches: FixedBatches,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """(L(h) + L(-h) - 2 L(0)) / h^2 along each (direction, h) for each batch, fp64 (directions, batches): d^T H d
    plus the fourth-order term h^2 / 12 L''''."""
    here = batches.evaluate(model).cpu()
    found = []
    for direction, step in directions:
        with Plane(parameters, direction, {}) as plane:
            sides = []
            for x in (step, -step):
                check()
                plane.move(x)
                sides.append(batches.evaluate(model).cpu())
        found.append((sides[0] + sides[1] - 2 * here) / step**2)
    return torch.stack(found)


def worst_rise(
    model: nn.Module,
    weights: Mapping[str, Weight],
    start: Direction,
    batches: FixedBatches,
    *,
    epsilon: float,
    steps: int,
    check: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """The highest loss found where no output row moves by more than `epsilon` times its own length: the losses of each
    batch at the centre and there, fp64 (batches,) each. All points of a filter-normalised plane with |x| + |y| below
    epsilon lie in that set.

    Steps of the generalised power method (Journee et al. 2010): each row goes to the edge along its gradient at the
    last point. From a convex loss each step goes up; in general the best point met is kept, so it is a lower bound of
    the worst rise. `start` is the filter-normalised direction of the first point.
    """
    own = {name: weight.parameter.data for name, weight in weights.items()}
    here = batches.evaluate(model).cpu()
    best = here
    try:
        _place(weights, own, {name: epsilon * start[name] for name in weights})
        for _ in range(steps):
            losses, gradients = _losses_and_gradients(model, weights, batches, check)
            best = losses if losses.mean() > best.mean() else best
            _place(
                weights, own, {name: _to_the_edge(weights[name], own[name], gradients[name], epsilon) for name in own}
            )
        losses = batches.evaluate(model).cpu()
        best = losses if losses.mean() > best.mean() else best
    finally:
        for name, weight in weights.items():
            weight.parameter.data = own[name]
    return here, best


def epsilon_sharpness(here: Tensor, worst: Tensor) -> dict[str, float]:
    """100 (max L - L) / (1 + L) (1609.04836, metric 2.1) of the batches' mean, with its interval over batches."""
    return jackknife(torch.stack([here, worst], dim=1).numpy(), lambda mean: 100 * (mean[1] - mean[0]) / (1 + mean[0]))


def _to_the_edge(weight: Weight, own: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
    """Each row along its gradient, epsilon times as long as the weight's; a row without a gradient stays."""
    wide = torch.promote_types(own.dtype, torch.float32)
    gradient = gradient.to(wide)
    norms = weight.row_norms(gradient)
    return torch.where(norms > 0, gradient / norms, 0.0) * (epsilon * weight.row_norms(own.to(wide)))


def _place(weights: Mapping[str, Weight], own: Mapping[str, Tensor], moves: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        move = moves[name]
        weight.parameter.data = (own[name].to(move.dtype) + move).to(own[name].dtype)


def _losses_and_gradients(
    model: nn.Module, weights: Mapping[str, Weight], batches: FixedBatches, check: Callable[[], None]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of each batch, and the gradient of their mean."""
    parameters = [weight.parameter for weight in weights.values()]
    wanted = [p.requires_grad for p in parameters]
    total = [torch.zeros_like(p) for p in parameters]
    losses = []
    try:
        for p in parameters:
            p.requires_grad_(True)
        for inputs, labels in zip(batches.inputs, batches.labels, strict=True):
            check()
            with torch.enable_grad():
                loss = batches.losses(model(**inputs).logits, labels).double().mean()
            found = torch.autograd.grad(loss, parameters, allow_unused=True)  # a pooler that nothing reads has none
            for sum_, one in zip(total, found, strict=True):
                if one is not None:
                    sum_.add_(one, alpha=1 / len(batches))
            losses.append(loss.detach().cpu())
    finally:
        for p, before in zip(parameters, wanted, strict=True):
            p.requires_grad_(before)
    return torch.stack(losses), dict(zip(weights, total, strict=True))
