"""Laziness against closed forms and finite differences, and on runs where the answer is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finished_runs import finished
from linears import Linears, adapted, jitter
from tunewise.catalog import CATALOG
from tunewise.measures.base import MeasureSettings
from tunewise.measures.finished import FinishedRun, no_check
from tunewise.measures.laziness.compute import Distances, LazinessResult, change_of, compute, distances
from tunewise.training.linearised import linear_parts, live_change, moved_outputs


def laziness(one: FinishedRun) -> LazinessResult:
    return compute(one, MeasureSettings(), no_check)


def test_a_linear_network_is_exactly_lazy() -> None:
    torch.manual_seed(0)
    x = torch.randn(9, 6, dtype=torch.float64)
    model, twin = adapted(Linears(6, 4), "lora")
    change = {name: value.detach() for name, value in live_change(model, twin).items()}
    start, derivative = linear_parts(twin, change, {"x": x})
    found = distances(start, start + derivative, moved_outputs(twin, change, {"x": x}))
    assert found.distance == pytest.approx(0.0, abs=1e-14)
    assert found.agreement == 1.0
    assert found.moved > 0.1


def test_two_linear_layers_miss_the_product_of_both_updates() -> None:
    """||dW2 dW1 x|| / ||(W2 + dW2)(W1 + dW1) x - W2 W1 x||, to 1e-12."""
    torch.manual_seed(0)
    x = torch.randn(9, 6, dtype=torch.float64)
    net = Linears(6, 5, 4)
    w1, w2 = (layer.weight.detach().clone() for layer in net.layers)
    model, twin = adapted(net, "lora")
    change = {name: value.detach() for name, value in live_change(model, twin).items()}
    d1, d2 = change.values()
    start, derivative = linear_parts(twin, change, {"x": x})
    found = distances(start, start + derivative, moved_outputs(twin, change, {"x": x}))
    moved = x @ ((w2 + d2) @ (w1 + d1) - w2 @ w1).T
    assert found.distance == pytest.approx(float((x @ (d2 @ d1).T).norm() / moved.norm()), rel=1e-12)
    assert found.moved == pytest.approx(float(moved.norm() / (x @ (w2 @ w1).T).norm()), rel=1e-12)


def test_the_backbone_is_linearised_where_the_head_has_come_to() -> None:
    """Two linear layers, the second held at W2 + dW2: the first is then exactly lazy, whatever both together are."""
    torch.manual_seed(0)
    x = torch.randn(9, 6, dtype=torch.float64)
    model, twin = adapted(Linears(6, 5, 4), "lora")
    first, second = ({n: v.detach()} for n, v in live_change(model, twin).items())
    w1, w2 = (layer.weight for layer in twin.layers)
    start, derivative = linear_parts(twin, first, {"x": x}, held=second)
    d1, d2 = next(iter(first.values())), next(iter(second.values()))
    torch.testing.assert_close(start, x @ ((w2 + d2) @ w1).T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(derivative, x @ ((w2 + d2) @ d1).T, rtol=1e-12, atol=1e-12)
    end = moved_outputs(twin, {**first, **second}, {"x": x})
    assert distances(start, start + derivative, end).distance == pytest.approx(0.0, abs=1e-14)


def test_where_nothing_has_moved_there_is_no_distance() -> None:
    logits = torch.ones(3, 2, dtype=torch.float64)
    assert distances(logits, logits, logits).distance is None


def test_training_the_head_alone_is_lazy(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    """The logits are linear in the head over frozen features: 0 to fp32 rounding."""
    found = laziness(finished(tiny_model, toy_csv, tmp_path, "head")).selected
    for part in (found.train, found.test):
        assert part.distance is not None and part.distance < 1e-3
        assert part.moved > 1e-3
    assert found.backbone == Distances(distance=None, moved=0.0, agreement=1.0)


@pytest.mark.parametrize("method", ["lora", "fft"])
def test_the_distance_agrees_with_finite_differences(
    method: str, tiny_model: Path, toy_csv: Path, tmp_path: Path
) -> None:
    """Df by central differences in fp64 on the test examples; the measure is fp32, so to 1 %."""
    one = finished(tiny_model, toy_csv, tmp_path, method)
    measured = laziness(one).selected
    found = measured.test
    assert 0 < measured.backbone.distance < 10
    assert measured.backbone.distance != measured.train.distance
    change = {name: value.double() for name, value in change_of(one.model, one.base).items()}
    base = one.task.load_model(one.spec.seed).eval().double()
    batch = {k: v for k, v in one.task.collate(list(one.task.test)[:32]).items() if k != "labels"}
    with torch.no_grad():
        start, end = base(**batch).logits, moved_outputs(base, change, batch)
        h = 1e-4
        ahead, behind = (moved_outputs(base, {n: s * h * d for n, d in change.items()}, batch) for s in (1, -1))
    linear = start + (ahead - behind) / (2 * h)
    assert found.distance == pytest.approx(float((end - linear).norm() / (end - start).norm()), rel=1e-2)
    assert found.moved == pytest.approx(float((end - start).norm() / start.norm()), rel=1e-3)


@pytest.mark.parametrize("method", [*sorted(CATALOG), "peft:dora"])
def test_w0_plus_the_change_is_the_trained_model(method: str, tiny_model: Path, toy_csv: Path) -> None:
    from test_run import make_spec
    from tunewise.tasks.build import build_task
    from tunewise.training.build import build_model

    spec = make_spec(tiny_model, toy_csv, method)
    task = build_task(spec)
    base, model = task.load_model(spec.seed).eval(), build_model(spec, task)
    jitter(model, 0.02)
    from tunewise.methods.fold_updates import refold

    refold(model)
    model.eval()
    batch = {k: v for k, v in task.collate(task.test[:4]).items() if k != "labels"}
    with torch.no_grad():
        expected = model(**batch).logits
        assert float((base(**batch).logits - expected).abs().max()) > 1e-3
        found = moved_outputs(base, change_of(model, base), batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_measured_run_is_left_as_it_was(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    one = finished(tiny_model, toy_csv, tmp_path, "c3la")
    before = {n: t.clone() for n, t in one.model.state_dict().items()}
    found = laziness(one)
    assert (found.train_examples, found.test_examples) == (32, 24)
    assert found.selected.train.moved > 0.0
    state = one.model.state_dict()
    assert all(torch.equal(state[n], t) for n, t in before.items())
