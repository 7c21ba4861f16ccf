"""Loss landscapes with known answers: quadratics, dense formulas, and a model that is the same bits afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from scipy.optimize import brentq
from torch import nn

from contracts import models
from measures import quadratic
from tunewise.errors import MeasureError
from tunewise.measures._estimate import jackknife, mean_over_batches
from tunewise.measures._weight_space.batches import FixedBatches
from tunewise.measures._weight_space.directions import random_direction, weights_of
from tunewise.measures._weight_space.plane import Plane, second_differences
from tunewise.measures.landscape.surface import losses_over
from tunewise.measures.sharpness.worst_rise import epsilon_sharpness, worst_rise

SHAPES = [(3, 4), (2, 5)]
AXIS = np.linspace(-2, 2, 9).tolist()


def network(dtype: torch.dtype = torch.float64) -> Any:
    return quadratic.Quadratic(quadratic.positive(22, dtype=dtype), SHAPES)


def moved(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight.parameter for name, weight in weights_of(model).items()}


def directions(model: nn.Module) -> tuple[Any, Any]:
    weights = weights_of(model)
    return random_direction(weights, 0, 0), random_direction(weights, 0, 1)


def flat(direction: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.double().flatten() for t in direction.values()])


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: t.detach().view(torch.uint8).numpy().tobytes() for name, t in model.state_dict().items()}


def bert_batches(name: str = "bert", count: int = 3, rows: int = 4) -> FixedBatches:
    made = [models.batch(name, rows=rows, seed=i) for i in range(count)]
    labels = [batch.pop("labels") for batch in made]

    def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.double(), labels, reduction="none")

    return FixedBatches(made, labels, losses)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_landscape_of_a_quadratic_is_that_quadratic(dtype: torch.dtype, tolerance: float) -> None:
    """Against the closed form in fp64, relative to the largest loss."""
    model = network(dtype)
    batches = quadratic.batches(model)
    first, second = directions(model)
    found = losses_over(model, Plane(moved(model), first, second), AXIS, AXIS, batches)
    hessian, centre = model.hessian.double(), model.weights().detach().double()
    expected = np.empty_like(found)
    for i, y in enumerate(AXIS):
        for j, x in enumerate(AXIS):
            point = centre + x * flat(first) + y * flat(second)
            for k, inputs in enumerate(batches.inputs):
                away = point - inputs["shift"][0].double()
                expected[i, j, k] = float(0.5 * away @ hessian @ away + 1)
    assert found.shape == (9, 9, 3)
    assert np.abs(found - expected).max() <= tolerance * expected.max()


def test_the_origin_has_the_models_own_loss_and_the_model_keeps_its_bits() -> None:
    model = models.make("bert")
    batches = bert_batches()
    before, places = bits(model), {name: p.data_ptr() for name, p in model.named_parameters()}
    here = batches.evaluate(model)
    axis = [-1.0, 0.0, 1.0]
    found = losses_over(model, Plane(moved(model), *directions(model)), axis, axis, batches)
    assert found[1, 1].tolist() == here.tolist()
    assert not np.allclose(found[0, 0], found[1, 1])
    assert bits(model) == before
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == places
    assert torch.equal(batches.evaluate(model), here)


def test_an_error_on_the_way_leaves_the_model_as_it_was() -> None:
    model = models.make("bert")
    before = bits(model)

    def stop() -> None:
        calls.append(0)
        if len(calls) > 4:
            raise KeyboardInterrupt

    calls: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        losses_over(model, Plane(moved(model), *directions(model)), AXIS, AXIS, bert_batches(), check=stop)
    assert bits(model) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_rounding_adds_up_along_a_row(dtype: torch.dtype) -> None:
    """Each point is the fp32 sum of three tensors to two roundings at most, whichever points came before it; added
    up step by step, the fiftieth would be off by some twenty."""
    model = nn.Linear(64, 64, bias=False).to(dtype)
    own = model.weight.detach().clone().float()
    first, second = directions(model)
    with Plane(moved(model), first, second) as plane:
        plane.to_row(0.7)
        for x in np.linspace(-2, 2, 51).tolist():
            plane.move(x)
            expected = ((own + 0.7 * second["weight"]) + x * first["weight"]).to(dtype)
            error = (model.weight.float() - expected.float()).abs().max()
            assert error <= 2 * torch.finfo(dtype).eps * expected.abs().max()
        last = model.weight.detach().clone()
        for x in (0.3, -1.0, 2.0):
            plane.move(x)
        assert torch.equal(model.weight, last)


def test_each_row_of_a_direction_is_as_long_as_the_weights_row() -> None:
    """Transposed layers (GPT-2's) by their outputs; biases, norms, embeddings and tied weights are not moved."""
    for name in ("bert", "gpt2", "vit"):
        model = models.make(name)
        weights = weights_of(model)
        found = random_direction(weights, 0, 0)
        for key, weight in weights.items():
            ours, theirs = weight.rows(found[key]), weight.rows(weight.parameter.detach())
            torch.testing.assert_close(ours.norm(dim=1), theirs.norm(dim=1), rtol=1e-5, atol=1e-7)
        moved_names = set(weights)
        assert not any("norm" in key.lower() or "embeddings.weight" in key or "bias" in key for key in moved_names)
    gpt2 = models.make("gpt2")
    weights = weights_of(gpt2)
    assert "lm_head.weight" not in weights  # it is the table of embeddings
    weight = weights["transformer.h.0.mlp.c_fc.weight"]
    assert weight.rows(weight.parameter).shape == (models.INNER, models.HIDDEN)


def test_methods_share_the_gaussian_vectors_and_scaling_a_layer_scales_its_part() -> None:
    """Scaled up by 8 (exact in binary), a layer's part of the direction is 8 times as long, and no other one moves."""
    one, two = models.make("bert"), models.make("bert")
    key = "bert.encoder.layer.0.output.dense.weight"
    with torch.no_grad():
        two.get_parameter(key).mul_(8)
    first, second = random_direction(weights_of(one), 0, 0), random_direction(weights_of(two), 0, 0)
    assert torch.equal(8 * first[key], second[key])
    assert all(torch.equal(first[name], second[name]) for name in first if name != key)
    other = random_direction(weights_of(one), 0, 1)
    assert abs(float(F.cosine_similarity(flat(first), flat(other), dim=0))) < 0.05


def test_quantized_and_empty_models_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(MeasureError, match="no plain floating-point weight"):
        weights_of(model)
    with pytest.raises(MeasureError, match="no linear or convolutional layer"):
        weights_of(nn.LayerNorm(4))


# --- figures -----------------------------------------------------------------------------------------------------


def test_curvature_along_a_direction_of_a_quadratic_is_exact() -> None:
    """d^T H d for every batch, to 1e-9."""
    model = network()
    batches = quadratic.batches(model)
    first, second = directions(model)
    before = bits(model)
    found = second_differences(model, moved(model), [(first, 0.05), (second, 0.5)], batches)
    for values, d in zip(found, (flat(first), flat(second)), strict=True):
        np.testing.assert_allclose(values.numpy(), [float(d @ model.hessian @ d)] * 3, rtol=1e-9)
    assert bits(model) == before


def test_the_worst_rise_within_one_rows_reach_is_that_of_the_dense_problem() -> None:
    """One row: the maximum of a convex quadratic over a ball, by its secular equation in fp64."""
    hessian = quadratic.positive(6)
    model = quadratic.Quadratic(hessian, [(1, 6)])
    batches = quadratic.batches(model, count=2)
    epsilon = 0.3
    weights = weights_of(model)
    before = bits(model)
    here, worst = worst_rise(model, weights, random_direction(weights, 0, 0), batches, epsilon=epsilon, steps=300)
    assert bits(model) == before
    centre = model.weights().detach()
    shift = torch.stack([inputs["shift"][0] for inputs in batches.inputs]).mean(0)
    gradient, radius = hessian @ (centre - shift), epsilon * float(centre.norm())
    values, basis = torch.linalg.eigh(hessian)
    along = basis.T @ gradient

    def beyond(m: float) -> float:
        return float((along / (m - values)).norm()) - radius

    top = float(values[-1])
    move = basis @ (along / (brentq(beyond, top * (1 + 1e-9), top * 1e6) - values))
    rise = float(gradient @ move + 0.5 * move @ hessian @ move)
    assert float(worst.mean() - here.mean()) == pytest.approx(rise, rel=1e-6)
    figure = epsilon_sharpness(here, worst)
    assert figure.value == pytest.approx(100 * rise / (1 + float(here.mean())), rel=1e-6)


def test_the_worst_rise_stays_within_reach_and_above_random_directions() -> None:
    """On a network: no plane point within the same reach is higher, and the gradient of every batch enters."""
    model = models.make("bert")
    weights, batches = weights_of(model), bert_batches()
    first, second = directions(model)
    here, worst = worst_rise(model, weights, first, batches, epsilon=0.1, steps=5)
    axis = [-0.1, -0.05, 0.0, 0.05, 0.1]
    found = losses_over(model, Plane(moved(model), first, second), axis, axis, batches)
    within = [found[i, j].mean() for i in range(5) for j in range(5) if abs(axis[i]) + abs(axis[j]) <= 0.1]
    assert float(here.mean()) < max(within) < float(worst.mean())


def test_the_jackknife_of_a_mean_is_the_t_interval() -> None:
    values = np.random.default_rng(0).normal(size=9)
    whole = jackknife(values, float)
    low, high = stats.t.interval(0.95, 8, values.mean(), stats.sem(values))
    assert (whole.value, whole.low, whole.high) == pytest.approx((values.mean(), low, high))
    assert mean_over_batches(values).model_dump() == pytest.approx(whole.model_dump())


def test_the_jackknife_of_a_ratio_covers_it() -> None:
    """95 % intervals of E[y] / E[x] hold the truth in 92 % to 98 % of 1000 draws of 30."""
    draw = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        x = draw.gamma(4.0, 1.0, 30)
        y = 2 * x + draw.normal(size=30)
        found = jackknife(np.stack([x, y], axis=1), lambda mean: mean[1] / mean[0])
        hits += found.low <= 2.0 <= found.high
    assert 920 <= hits <= 980
