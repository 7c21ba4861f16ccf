"""The highest loss within a radius around a minimum, for epsilon-sharpness."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tunewise.measures._estimate import Estimate, jackknife
from tunewise.measures._weight_space.batches import FixedBatches
from tunewise.measures._weight_space.directions import Direction, Weight
from tunewise.measures.finished import Check, no_check


def worst_rise(
    model: nn.Module,
    weights: Mapping[str, Weight],
    start: Direction,
    batches: FixedBatches,
    *,
    epsilon: float,
    steps: int,
    check: Check = no_check,
) -> tuple[Tensor, Tensor]:
    """The losses of each batch, fp64 (batches,), at the centre and at the highest point found where no output row moves
    by more than `epsilon` times its own length. `start` is the filter-normalised direction of the first point.

    Generalised power method (Journee et al. 2010): each row goes to the edge along its gradient at the last point. For
    a convex loss each step goes up; in general the best point is kept, which is a lower bound of the worst rise.
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


def epsilon_sharpness(here: Tensor, worst: Tensor) -> Estimate:
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
    model: nn.Module, weights: Mapping[str, Weight], batches: FixedBatches, check: Check
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
