"""The largest curvature against power iteration with double backward passes in fp64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from finished_runs import finished
from tunewise.measures.bounds.curvature import EXAMPLES, largest_curvature
from tunewise.measures.laziness.compute import change_of


@pytest.mark.slow
def test_the_curvature_is_the_hessians_largest_eigenvalue(tiny_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    """Within 3 %: Lanczos stops at 1 %, and power iteration comes from below."""
    one = finished(tiny_model, toy_csv, tmp_path, "paca")
    found = largest_curvature(one, lambda: None)
    base = one.task.load_model(one.spec.seed).eval().double()
    own = {name: p.detach() for name, p in base.named_parameters()}
    at = {name: own[name] + d.double() for name, d in change_of(one.model, base).items()}
    names = [name for name in at if "attention" in name]
    assert len(names) == 4
    batch = dict(one.task.collate(one.task.train[:EXAMPLES]))
    labels = batch.pop("labels")
    point = [at[name].requires_grad_() for name in names]
    with sdpa_kernel(SDPBackend.MATH):
        logits = functional_call(base, {**at, **dict(zip(names, point))}, args=(), kwargs=batch).logits
        gradients = torch.autograd.grad(F.cross_entropy(logits, labels), point, create_graph=True)
    torch.manual_seed(1)
    v = [torch.randn_like(p) for p in point]
    shift, value = 2 * abs(found), 0.0  # so that the largest is also the largest in size
    for _ in range(60):
        size = sum(float((x**2).sum()) for x in v) ** 0.5
        v = [x / size for x in v]
        hv = torch.autograd.grad(gradients, point, grad_outputs=v, retain_graph=True)
        value = sum(float((a * b).sum()) for a, b in zip(hv, v))
        v = [h + shift * x for h, x in zip(hv, v)]
    assert found == pytest.approx(value, rel=3e-2)
    assert found > 0
