"""How sharp the minimum is that a run found, in figures with intervals: a measure of every run.

`sharpness` is the mean of d^T H d over random filter-normalised directions d (1712.09913) in all linear and
convolutional weights of the merged model: the second derivative of the loss along a random line on which 1 is as long
as each weight's rows. Scaling a layer up and its successor down does not change it, and it means the same for all
methods on one base model, whatever they train.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tunewise.errors import MeasureError
from tunewise.measures._estimate import mean_over_batches
from tunewise.measures._weight_space.batches import fixed_batches, plain_model
from tunewise.measures._weight_space.directions import random_direction, weights_of
from tunewise.measures.finished import FinishedRun
from tunewise.measures.settings import SharpnessSettings
from tunewise.measures.sharpness.hessian import hessian_figures
from tunewise.measures.sharpness.worst_rise import epsilon_sharpness, second_differences, worst_rise


def sharpness(run: FinishedRun, check: Callable[[], None], settings: SharpnessSettings | None = None) -> dict[str, Any]:
    """Curvature along random directions, epsilon-sharpness, and the Hessian in the trained parameters.

    Returns:
        sharpness: nats; `sharpness_low`, `sharpness_high`: its 95 % interval over batches.
        spread: standard deviation over the directions.
        epsilon_sharpness: {value, low, high}, in percent of 1 + L; see `curvature.worst_rise`.
        loss: {value, low, high} at the centre.
        hessian: see `hessian.hessian_figures`, or None with the reason in `hessian_missing`.
        weights, batches, batch_size: how many numbers are moved, and on what the loss is taken.
    """
    chosen = settings or SharpnessSettings()
    model = plain_model(run)
    weights = weights_of(model)
    batches = fixed_batches(run, chosen.batches, chosen.seed)
    parameters = {name: weight.parameter for name, weight in weights.items()}
    curvatures = []
    for number in range(chosen.directions):  # one at a time: a direction is as large as the model
        lines = [(random_direction(weights, chosen.seed, number), chosen.step)]
        curvatures.append(second_differences(model, parameters, lines, batches, check)[0])
    along = torch.stack(curvatures)
    mean = mean_over_batches(along.mean(0).numpy())
    here, worst = worst_rise(
        model,
        weights,
        random_direction(weights, chosen.seed, 0),
        batches,
        epsilon=chosen.epsilon,
        steps=chosen.ascent,
        check=check,
    )
    values: dict[str, Any] = {
        "sharpness": mean["value"],
        "sharpness_low": mean["low"],
        "sharpness_high": mean["high"],
        "spread": float(along.mean(1).std()) if len(along) > 1 else 0.0,
        "epsilon_sharpness": epsilon_sharpness(here, worst),
        "loss": mean_over_batches(here.numpy()),
        "hessian": None,
        "weights": sum(p.numel() for p in parameters.values()),
        "batches": len(batches),
        "batch_size": len(batches.labels[0]),
    }
    del model, weights, parameters
    if chosen.eigenvalues:
        try:
            values["hessian"] = hessian_figures(
                run, batches, eigenvalues=chosen.eigenvalues, probes=chosen.probes, seed=chosen.seed, check=check
            )
        except MeasureError as reason:
            values["hessian_missing"] = str(reason)
    return values
